"""Records what launchers launch, as cases to compile, with neither a GPU nor memory for the tensors.

    record = Recorder("rms_norm")
    with record("4096 bf16"):
        rms_norm(tensor(BF16, 1, 4096), ...)     ->  record.cases: one for each kernel[grid](...)

A stand-in takes the launch. The types, and the integers that 16 divides, are what Triton makes of the
arguments; but an integer of 1 stays an argument, since it is one for other batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from triton._C.libtriton import native_specialize_impl
from triton._utils import find_paths_if
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import JITFunction

from ..base import checks
from .compile import CompileCase

META = torch.device("meta")


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """One without memory: what a launcher is given here."""
    return torch.empty(shape, dtype=dtype, device=META)


def specialised(value: Any, specialise: bool = True) -> tuple[Any, Any]:
    """(type, "D" if 16 divides it) of an argument, or tuples of these. None is a constant."""
    if isinstance(value, tuple):
        kinds, marks = zip(*map(specialised, value), strict=True)
        return (type(value)(*kinds) if hasattr(value, "_fields") else kinds), marks
    plain = isinstance(value, int) and value == 1
    kind, mark = native_specialize_impl(BaseBackend, value, False, specialise and not plain, True)
    return kind, mark


def case_of(name: str, kernel: JITFunction, arguments: tuple[Any, ...], named: dict[str, Any]) -> CompileCase:
    """The case of kernel[grid](*arguments, **named)."""
    names = kernel.arg_names
    given = dict(zip(names, arguments, strict=False)) | {n: v for n, v in named.items() if n in names}
    values = [given[n] for n in names]
    pairs = [
        ("constexpr", None) if p.is_constexpr else specialised(v, not p.do_not_specialize)
        for p, v in zip(kernel.params, values, strict=True)
    ]
    kinds, marks = [kind for kind, _ in pairs], [mark for _, mark in pairs]
    options = {n: v for n, v in named.items() if n not in names}
    constants = {}
    for path in find_paths_if(kinds, lambda _, kind: kind == "constexpr"):
        value: Any = values
        for step in path:
            value = value[step]
        constants[path] = value
    return CompileCase(
        name=f"{name} {kernel.__name__.removesuffix('_kernel')}",
        kernel=kernel,
        signature=dict(zip(names, kinds, strict=True)),
        constants=constants,
        divisible_by_16=tuple(find_paths_if(marks, lambda _, mark: mark == "D")),
        num_warps=options.pop("num_warps", 4),
        num_stages=options.pop("num_stages", 3),
        options=options,
    )


@contextmanager
def launches_taken(take: Callable[..., None]) -> Iterator[None]:
    """take(kernel, *arguments, grid=.., **named) stands in for every launch; tensors may be on any device."""

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        take(kernel, *arguments, grid=grid, **named)

    with patch.object(JITFunction, "run", run), patch.object(checks, "runs_kernels", lambda device: True):
        yield


class Recorder:
    """The cases of one operator, in order."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self.cases: list[CompileCase] = []

    @contextmanager
    def __call__(
        self, label: str = "", keep: Callable[[CompileCase], bool] = lambda case: True
    ) -> Iterator[None]:
        """What is launched inside is recorded, if `keep` says so. label: the configuration, in words."""
        name = f"{self.operator} {label}".strip()

        def take(kernel: JITFunction, *arguments: Any, grid: Any, **named: Any) -> None:
            case = case_of(name, kernel, arguments, named)
            if keep(case):
                self.cases.append(case)

        with launches_taken(take):
            yield
