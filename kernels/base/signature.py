"""The arguments of an operator, read off its launcher: the schema for torch, and what each tensor must be.

    def scale(x: Annotated[Tensor, "float [R, V]"], by: float, out: Annotated[Tensor, "x [R, V] out"]) -> None

is "scale(Tensor x, float by, Tensor(a!) out) -> ()", and refuses an out without the shape and dtype of x. A
named tuple of such arguments stands for its fields, in their order.

Of a tensor is written: its dtype, or several (fp32|fp16), `float` for any floating one, or another argument's
name for its dtype; its sizes, where a letter is one size in all tensors, and where sums may hold numbers and
integer arguments; then any of
    out       the operator writes it
    strided   it need not be contiguous
    rows      only its last dimension must be, which has 1 to MAX_VOCAB entries
    pinned    it may be in pinned memory of the host instead of on the device of the others
Where nothing is written, the launcher checks the tensor; its device is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter, signature
from string import ascii_lowercase
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch

from .checks import check, check_device, check_rows

DTYPES = {
    "float": (torch.float32, torch.float16, torch.bfloat16),
    "fp32": (torch.float32,),
    "int8": (torch.int8,),
    "uint8": (torch.uint8,),
    "int32": (torch.int32,),
    "int64": (torch.int64,),
}
MARKS = ("out", "strided", "rows", "pinned")


@dataclass(frozen=True)
class Argument:
    """One argument of the operator, and what is written about it."""

    name: str
    kind: str  # in a schema
    default: str  # likewise: "=None", or nothing
    dtypes: tuple[str, ...] = ()
    sizes: tuple[str, ...] | None = None  # None: of any shape
    marks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, hint: Any, default: Any) -> Argument:
        """hint: as get_type_hints gives it, extras included."""
        hint, about = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
        kinds = [kind.__name__ for kind in get_args(hint) or (hint,) if kind is not type(None)]
        [kind] = kinds
        shape = re.search(r"\[(.*)\]", about)
        words = re.sub(r"\[.*\]", "", about).split()
        dtypes = [word for word in words if word not in MARKS]
        return cls(
            name,
            kind + ("?" if get_args(hint) else ""),
            "" if default is Parameter.empty else f"={default}",
            tuple(dtypes[0].split("|")) if dtypes else (),
            tuple(size.strip() for size in shape[1].split(",")) if shape else None,
            frozenset(words) & frozenset(MARKS),
        )

    @property
    def is_tensor(self) -> bool:
        return self.kind.startswith("Tensor")

    def check(self, op: str, given: dict[str, Any], sizes: dict[str, int]) -> None:
        """sizes: of the letters so far; those that are new here are added. Raises ValueError."""
        tensor = given[self.name]
        if self.sizes is None or tensor is None:
            return
        if "rows" in self.marks:
            check_rows(op, self.name, tensor, len(self.sizes))
        expected = tuple(_size(text, sizes) for text in self.sizes)
        accepted = [DTYPES.get(word) or (given[word].dtype,) for word in self.dtypes]
        dtypes = dict.fromkeys(dtype for each in accepted for dtype in each)
        check(op, self.name, tensor, expected, *dtypes, contiguous=not self.marks & {"strided", "rows"})
        sizes |= {text: size for text, size in zip(self.sizes, tensor.shape, strict=True) if text.isalpha()}


def _size(text: str, sizes: dict[str, int]) -> int | None:
    """Of a sum; None if it has a letter that no tensor has shown yet."""
    if text.isalpha():
        return sizes.get(text)
    total = 0
    for sign, term in re.findall(r"([+-]?) *(\w+)", text):
        size = int(term) if term.isdigit() else sizes.get(term)
        if size is None:
            return None
        total += -size if sign == "-" else size
    return total


class OperatorSignature:
    """The arguments of one operator: of its launcher, with the fields of each named tuple in its place."""

    def __init__(self, launcher: Callable[..., None]) -> None:
        self.name = launcher.__name__
        self._groups: dict[str, tuple[Any, list[Argument]]] = {}  # by parameter of the launcher
        parameters = signature(launcher).parameters
        self._required = [name for name, own in parameters.items() if own.default is Parameter.empty]
        hints = get_type_hints(launcher, include_extras=True)
        for name, parameter in parameters.items():
            own = hints[name]
            if hasattr(own, "_fields"):
                fields = get_type_hints(own, include_extras=True).items()
                group = own, [Argument.of(field, hint, Parameter.empty) for field, hint in fields]
            else:
                group = None, [Argument.of(name, own, parameter.default)]
            self._groups[name] = group
        self.arguments = [argument for _, group in self._groups.values() for argument in group]
        # A tensor whose sizes are letters shows them to those whose sizes are sums.
        self._checked = sorted(
            (argument for argument in self.arguments if argument.is_tensor),
            key=lambda argument: any(" " in size for size in argument.sizes or ()),
        )

    @property
    def schema(self) -> str:
        letters, words = iter(ascii_lowercase), []
        for argument in self.arguments:
            written = f"Tensor({next(letters)}!)" if "out" in argument.marks else "Tensor"
            words.append(f"{argument.kind.replace('Tensor', written)} {argument.name}{argument.default}")
        return f"{self.name}({', '.join(words)}) -> ()"

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the launcher is called with: each tensor as it must be, all on one device that can run
        kernels. Raises ValueError, or TypeError for an argument that is not there."""
        passed = dict(zip(self._groups, args, strict=False)) | kwargs
        if missing := [name for name in self._required if name not in passed]:
            raise TypeError(f"{self.name}: {', '.join(missing)} must be passed")
        given = dict(self._flat(passed))
        sizes = {name: value for name, value in given.items() if type(value) is int}
        for argument in self._checked:
            argument.check(self.name, given, sizes)
        check_device(self.name, **{a.name: given[a.name] for a in self._checked if "pinned" not in a.marks})
        device = next(tensor.device for tensor in given.values() if isinstance(tensor, torch.Tensor))
        for name in (argument.name for argument in self._checked if "pinned" in argument.marks):
            found = given[name].device
            if found != device and not given[name].is_pinned():
                raise ValueError(
                    f"{self.name}: {name} on {found}, expected {device}, or pinned memory of the host"
                )

    def _flat(self, given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, (group, _) in self._groups.items():
            fields, values = ((name,), (given.get(name),)) if group is None else (group._fields, given[name])
            yield from zip(fields, values, strict=True)

    def operator(self, launch: Callable[..., None]) -> Callable[..., None]:
        """The launcher, called as the operator is: with the fields of its tuples one by one."""
        names = [argument.name for argument in self.arguments]

        def call(*args: Any, **kwargs: Any) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            for name, (group, _) in self._groups.items():
                if group is not None:
                    given[name] = group(*(given.pop(field) for field in group._fields))
            launch(**given)

        return call
