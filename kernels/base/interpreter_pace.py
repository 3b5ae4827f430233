"""Makes Triton's interpreter quicker, with the same results: what follows from a type is found once.

Triton 3.6 builds a tensor's type, its shape of constants and the text of both anew for each operation, and a
table of all dtypes for each array: more than half of the time of a kernel over small tensors. None of these
changes once it is built. Other versions of Triton keep their own pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import triton
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

VERSION = "3.6."


@dataclass(frozen=True)
class KnownShape:
    """What types and tensors of one shape share."""

    shape: Any  # tl.tuple of int, of a type
    numel: int
    text: str
    constants: Any  # tl.tuple of constexpr, of a tensor
    constant_numel: Any


def remember_shapes() -> None:
    """Has types and tensors of one shape share what follows from it."""
    known: dict[tuple[int, ...], KnownShape] = {}
    names: dict[tuple[str, str], str] = {}
    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    broadcast = TritonSemantic.broadcast_impl_value
    no_shape, one = core.tuple([]), tl.constexpr(1)

    def block_type(self: Any, element_ty: Any, shape: Sequence[Any]) -> None:
        key = tuple([d.value if isinstance(d, tl.constexpr) else d for d in shape])
        found = known.get(key)
        if found is None or float in map(type, key):  # 4.0 is 4 to a dict
            make_type(self, element_ty, shape)  # raises for a shape that may not be
            tensor = core.tensor.__new__(core.tensor)
            make_tensor(tensor, None, self)
            known[key] = KnownShape(self.shape, self.numel, str(self.shape), tensor.shape, tensor.numel)
            self.known = known[key]
            return
        self.element_ty, self.shape, self.numel, self.known = element_ty, found.shape, found.numel, found
        pair = found.text, element_ty.name
        name = names.get(pair)
        if name is None:
            name = names[pair] = f"<{found.text}, {element_ty}>"
        self.name = name

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        found = getattr(type, "known", None)
        self.shape, self.numel = (no_shape, one) if found is None else (found.constants, found.constant_numel)

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = getattr(lhs.type, "known", None), getattr(rhs.type, "known", None)
        return (lhs, rhs) if left is right is not None else broadcast(self, lhs, rhs)

    TritonSemantic.broadcast_impl_value = broadcast_impl_value
    core.block_type.__init__, core.tensor.__init__ = block_type, tensor


def remember_dtypes() -> None:
    """Has numpy's dtype of a type looked up by the name of its elements."""
    known: dict[str, numpy.dtype] = {}
    dtype_of, address = interpreter._get_np_dtype, numpy.dtype(numpy.uint64)

    def np_dtype(type: Any) -> numpy.dtype:
        scalar = type.scalar
        if isinstance(scalar, tl.pointer_type):
            return address
        found = known.get(scalar.name)
        if found is None:
            found = known[scalar.name] = dtype_of(scalar)
        return found

    interpreter._get_np_dtype = np_dtype


def call_builtins_directly() -> None:
    """Has a call of the language go to its function, without two wrappers that hand on every argument."""

    def patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        semantic, function = TritonSemantic(builder), getattr(member, "__wrapped__", member)

        def call(*arguments: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return function(*arguments, **named)

        scope.set_attr(obj, name, call)

    interpreter._patch_attr = patch_attr


def quicken() -> None:
    """All of it, where this is the version that it was written for."""
    if triton.__version__.startswith(VERSION):
        remember_shapes()
        remember_dtypes()
        call_builtins_directly()
