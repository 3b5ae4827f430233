"""Makes Triton's interpreter quicker, with the same results: what follows from a type is found once.

Triton 3.6 builds a tensor's type, its shape of constants and the text of both anew for each operation, and a
table of all dtypes for each array: more than half of the time of a kernel over small tensors. None of these
changes once it is built. Most of what is left goes into two operands of one type: it asks what type both
have, searches lists of names for it, and copies the smaller one until it has the other's shape, which numpy
does by itself. Other versions of Triton keep their own pace.
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


@dataclass(frozen=True, eq=False)
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


def ask_names_once() -> None:
    """Has a dtype looked up in sets of names, compared with itself at once, and taken for its own IR."""
    dtype = core.dtype
    signed, unsigned, floating = map(frozenset, (dtype.SINT_TYPES, dtype.UINT_TYPES, dtype.FP_TYPES))
    integers, standard = signed | unsigned, frozenset(dtype.STANDARD_FP_TYPES)
    dtype.is_int = lambda self: self.name in integers
    dtype.is_int_signed = lambda self: self.name in signed
    dtype.is_int_unsigned = lambda self: self.name in unsigned
    dtype.is_floating = lambda self: self.name in floating
    dtype.is_standard_floating = lambda self: self.name in standard
    for kind in (dtype, core.pointer_type, core.block_type):
        equals = kind.__eq__
        kind.__eq__ = lambda self, other, equals=equals: self is other or equals(self, other)
    core.block_type.to_ir = lambda self, builder: self


def pair_operands() -> None:
    """Has two operands of one type, a number beside a tensor, and an address and an offset taken as they are:
    numpy gives the smaller one the shape of the other.
    """
    check, broadcast = TritonSemantic.binary_op_type_checking_impl, TritonSemantic.broadcast_impl_value
    Tensor, Pointer = core.tensor, core.pointer_type
    integers = frozenset(core.dtype.SINT_TYPES + core.dtype.UINT_TYPES)
    quotients = integers | {"fp32", "fp64"}  # of others Triton divides in fp32
    shapes: dict[tuple[Any, Any], Any] = {}
    constants: dict[tuple[type, Any, str, bool], Any] = {}

    def of_shape(operand: Any, shape: Any) -> Any:
        known = getattr(operand.type, "known", None)
        if known is shape:
            return operand
        return Tensor(operand.handle, core.block_type(operand.dtype, shape.shape))

    def side_by_side(semantic: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        left, right = getattr(lhs.type, "known", None), getattr(rhs.type, "known", None)
        if left is right:
            return lhs, rhs
        shape = left if right is None else right if left is None else shapes.get((left, right))
        if shape is None:
            both, _ = broadcast(semantic, lhs, rhs)  # raises where there is none
            shape = shapes[left, right] = both.type.known
        return of_shape(lhs, shape), of_shape(rhs, shape)

    def constant(semantic: Any, value: Any, kind: Any, is_quotient: bool) -> Any:
        """The number as an array of that type; None where the operation has another one."""
        key = type(value), value, kind.name, is_quotient
        if key not in constants:
            zero = interpreter.TensorHandle(numpy.zeros(1, interpreter._get_np_dtype(kind)), kind)
            tensor, number = check(semantic, Tensor(zero, kind), value, False, False, True, is_quotient)
            constants[key] = number.handle.data if tensor.dtype is kind is number.dtype else None
        return constants[key]

    def binary_op_type_checking_impl(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> tuple[Any, Any]:
        if isinstance(lhs, Tensor) and isinstance(rhs, Tensor):
            left, right = lhs.dtype, rhs.dtype
            if left is right and not isinstance(left, Pointer):
                if not div_or_mod or left.name in quotients:
                    return side_by_side(self, lhs, rhs)
            elif allow_lhs_ptr and isinstance(left, Pointer) and right.name in integers:
                return side_by_side(self, lhs, rhs)
        elif arithmetic_check:
            tensor, number = (lhs, rhs) if isinstance(lhs, Tensor) else (rhs, lhs)
            is_number = type(number) is int or type(number) is float
            if is_number and isinstance(tensor, Tensor) and not isinstance(tensor.dtype, Pointer):
                data = constant(self, number, tensor.dtype, div_or_mod)
                if data is not None:
                    made = Tensor(interpreter.TensorHandle(data, tensor.dtype), tensor.type)
                    return (tensor, made) if tensor is lhs else (made, tensor)
        return check(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    TritonSemantic.binary_op_type_checking_impl = binary_op_type_checking_impl


def make_handles_quickly() -> None:
    """Has a handle made in one call, and a tensor that is assigned taken as it is."""
    Handle, validate = interpreter.TensorHandle, interpreter.TensorHandle.__post_init__
    to_tensor = TritonSemantic.to_tensor

    def handle(self: Any, data: Any, dtype: Any) -> None:
        self.data, self.dtype, self.attr = data, dtype, {}
        if not isinstance(dtype, core.pointer_type) and data.itemsize > max(dtype.itemsize, 1):
            validate(self)

    def assigned(self: Any, x: Any, check_type: bool = True) -> Any:
        return x if isinstance(x, core.tensor) else to_tensor(self, x, check_type)

    Handle.__init__, TritonSemantic.to_tensor = handle, assigned


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
        ask_names_once()
        remember_shapes()
        remember_dtypes()
        pair_operands()
        make_handles_quickly()
        call_builtins_directly()
