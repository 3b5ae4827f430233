"""Mends Triton's interpreter: loops to a run-time bound under numpy 2.4, tl.dot, conditions, its pace.

Imported by the files that kernels are made of; does nothing where kernels are compiled.

Triton 3.6 turns an array of one element into a number in a way that numpy 2.4 refuses (triton #9171, mended
in 3.9). It is mended here because no requirement would do: torch's wheels for CUDA ask for one exact version
of Triton, and an environment with other packages has the numpy that they brought.

A comparison of scalars that meets a tensor becomes a number of the type that was compared, which no mask may
be. It stays a condition here.

It multiplies matrices by numpy's BLAS, which orders a sum by the processor and by the number of rows.
Compiled kernels promise a row the same bits in any company, and tests hold them to it. Here every sum of
tl.dot is in order of k.

The interpreter evaluates every check for integer overflow and throws the result away, for a fifth of its
time, and makes no tl.device_assert. Both follow triton.knobs.runtime.debug (TRITON_DEBUG=1) here, as they do
in compiled kernels: off, or an AssertionError.

It patches triton.language anew for every launch and every call of a device function, a third of the time of a
small kernel, and restores after a launch a part of it. Here what is patched stays so. What else takes its
time is mended in interpreter_pace.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import triton
from triton.runtime import interpreter

from .checks import interpreting
from .interpreter_pace import quicken


def mend_scalars() -> None:
    """Makes __index__ of the interpreter's scalars, arrays of one element, work again."""
    try:
        int(numpy.zeros(1))
    except TypeError:
        patch = interpreter._patch_lang_tensor

        def patch_and_mend(tensor: Any, scope: Any) -> None:
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda scalar: int(scalar.handle.data.item()))

        interpreter._patch_lang_tensor = patch_and_mend


def splat_truth_values() -> None:
    """Has a comparison of scalars stay one in a splat, which would make it a number of what was compared."""
    splat = interpreter.InterpreterBuilder.create_splat

    def create_splat(self: Any, kind: Any, value: Any) -> Any:
        if value.data.dtype == bool:
            return interpreter.TensorHandle(numpy.full(kind.shape, value.data), value.dtype.scalar)
        return splat(self, kind, value)

    interpreter.InterpreterBuilder.create_splat = create_splat


def sum_in_order(a: numpy.ndarray, b: numpy.ndarray, dtype: numpy.dtype) -> numpy.ndarray:
    """a [.., M, K] times b [.., K, N], in dtype: each sum in order of k, if N is more than one.

    einsum runs no BLAS unless it is asked to optimize. Over arrays in C order its inner loop is along N.
    """
    left, right = (numpy.ascontiguousarray(matrix, dtype) for matrix in (a, b))
    return numpy.einsum("...mk,...kn->...mn", left, right)


def dot_in_order() -> None:
    """Has tl.dot sum in order of k, on every machine."""

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:  # fp32 is fp32 here
        total = sum_in_order(a.data, b.data, d.data.dtype)
        return interpreter.TensorHandle(total + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def follow_debug() -> None:
    """Has the interpreter check what compiled kernels would."""
    builder, debug = interpreter.interpreter_builder, bool(triton.knobs.runtime.debug)
    builder.options = replace(builder.options, debug=debug, sanitize_overflow=debug)


def patch_once() -> None:
    """Has the language stay patched, from the first launch out of each module on."""
    patch = interpreter._patch_lang
    patched: set[str] = set()

    def patch_new(fn: Any) -> Any:
        if fn.__module__ not in patched:  # what is patched follows from the module's globals
            patched.add(fn.__module__)
            patch(fn)
        return interpreter._LangPatchScope()  # which has nothing to restore

    interpreter._patch_lang = patch_new


if interpreting():
    mend_scalars()
    splat_truth_values()
    dot_in_order()
    follow_debug()
    patch_once()
    quicken()
