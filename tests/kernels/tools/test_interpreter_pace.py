"""What the interpreter remembers of types is what Triton would build again."""

from __future__ import annotations

import importlib.util
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from compiled import skip_where_compiled
from triton.language import semantic as installed
from triton.runtime import interpreter

from pearl_rt.kernels.base import interpreter as mended


@pytest.fixture(autouse=True)
def interpreted() -> None:
    skip_where_compiled()


def test_a_type_has_what_it_had_the_first_time() -> None:
    for element in (tl.float32, tl.int8, tl.pointer_type(tl.float16)):
        first, second = (tl.block_type(element, [2, tl.constexpr(64)]) for _ in range(2))
        assert str(second) == str(first) == f"<['2', '64'], {element}>" and second.mangle() == first.mangle()
        assert first == second and first != tl.block_type(element, [64, 2])
        assert list(second.shape) == [2, 64] and second.numel == 128 and second.scalar is element
        assert str(second.with_element_ty(tl.int1)) == "<['2', '64'], int1>"


@pytest.mark.parametrize("shape", [[3], [4, 6], [2**21], [4.0]], ids=str)
def test_a_shape_that_may_not_be_is_refused_each_time(shape: list[object]) -> None:
    tl.block_type(tl.int32, [4])
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            tl.block_type(tl.int32, shape)


def test_arrays_have_the_dtype_of_their_elements() -> None:
    dtypes = {tl.int1: bool, tl.bfloat16: np.uint16, tl.float16: np.float16, tl.uint64: np.uint64}
    for kind, expected in dtypes.items():
        assert interpreter._get_np_dtype(kind) == expected
        assert interpreter._get_np_dtype(tl.block_type(kind, [8])) == expected
        assert interpreter._get_np_dtype(tl.pointer_type(kind)) == np.uint64
        assert interpreter._get_np_dtype(tl.block_type(tl.pointer_type(kind), [8])) == np.uint64


@triton.jit
def outer_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    x, y = tl.load(x_ptr + index), tl.load(y_ptr + index)
    square = x[:, None] * y[None, :] + y  # a row of one less axis
    tl.store(out_ptr + index[:, None] * N + index[None, :], square - tl.sum(x, axis=0) * 2)


def test_axes_are_broadcast() -> None:
    x, y = torch.arange(8.0), torch.arange(8.0) ** 2
    out = torch.full((8, 8), torch.nan)
    outer_kernel[(1,)](x, y, out, 8)
    assert torch.equal(out, x[:, None] * y[None, :] + y - x.sum() * 2)


KINDS = (
    *(tl.int1, tl.int8, tl.uint8, tl.int32, tl.uint32, tl.int64, tl.uint64),
    *(tl.float16, tl.bfloat16, tl.float32, tl.float64, tl.pointer_type(tl.float32)),
)
SHAPES = ((), (1,), (4,), (8,), (4, 1), (1, 8), (4, 8))
NUMBERS = (0, 1, -1, 3, 200, 2**31, 2**40, 0.0, -0.0, 1.5, -2.5, 1e30, float("inf"), float("nan"), True)
OPERATIONS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("add", "sub", "mul"), (False,)),
    **dict.fromkeys(("truediv", "floordiv", "mod"), ()),
    "fdiv": (True,),
    **dict.fromkeys(("minimum", "maximum"), (tl.PropagateNan.NONE,)),
    **dict.fromkeys(("and_", "or_", "xor_", "shl", "lshr", "ashr"), ()),
    **dict.fromkeys(("greater_than", "greater_equal", "less_than", "less_equal", "equal", "not_equal"), ()),
}


def operand_of(kind: Any, shape: tuple[int, ...], rng: np.random.Generator) -> tl.tensor:
    dtype = interpreter._get_np_dtype(kind)
    data = rng.integers(0, 100, shape or (1,)).astype(dtype)
    if kind.is_floating() and kind is not tl.bfloat16:
        data = (data / 7 - 5).astype(dtype)
    return tl.tensor(
        interpreter.TensorHandle(data, kind), tl.block_type(kind, list(shape)) if shape else kind
    )


def outcome_of(semantic: Any, name: str, left: Any, right: Any) -> tuple[Any, ...]:
    """The type, elements and bytes of a result, or the error, of copies of the operands."""
    operands = [
        tl.tensor(interpreter.TensorHandle(x.handle.data.copy(), x.dtype), x.type)
        if isinstance(x, tl.tensor)
        else x
        for x in (left, right)
    ]
    try:
        with np.errstate(all="ignore"):
            if name == "where":
                condition = tl.tensor(interpreter.TensorHandle(np.arange(8) % 3 == 0, tl.int1), CONDITION)
                found = semantic.where(condition, *operands)
            else:
                found = getattr(semantic, name)(*operands, *OPERATIONS[name])
    except Exception as error:
        return (type(error).__name__,)
    data = np.broadcast_to(found.handle.data, list(found.type.shape) if found.type.is_block() else (1,))
    return str(found.type), str(found.handle.dtype), data.dtype, data.shape, data.tobytes()


CONDITION = tl.block_type(tl.int1, [8])


def told(operand: Any) -> str:
    return f"{operand.type}" if isinstance(operand, tl.tensor) else repr(operand)


def test_operations_are_tritons_own() -> None:
    """Of tensors of every type and shape, and of numbers: the bits of Triton's own code, or its error."""
    spec = importlib.util.spec_from_file_location("triton.language.semantic_as_installed", installed.__file__)
    assert spec is not None and spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    own, mended_one = plain.TritonSemantic(interpreter.interpreter_builder), interpreter.interpreter_semantic
    draw, rng = random.Random(0), np.random.default_rng(0)
    pairs = [
        (kind, left, kind, right) for kind in KINDS for left, right in itertools.product(SHAPES, repeat=2)
    ]
    pairs += [tuple(map(draw.choice, (KINDS, SHAPES, KINDS, SHAPES))) for _ in range(1000)]
    cases = [(operand_of(*case[:2], rng), operand_of(*case[2:], rng)) for case in pairs]
    for kind, shape, number in itertools.product(KINDS, SHAPES[::2], NUMBERS):
        sides = operand_of(kind, shape, rng), number
        cases += [sides, sides[::-1]] if draw.random() < 0.5 else [sides[::-1], sides]
    results = 0
    for left, right in cases:
        for name in draw.sample([*OPERATIONS, "where"], 6):
            want = outcome_of(own, name, left, right)
            assert outcome_of(mended_one, name, left, right) == want, (name, left.type, right)
            results += len(want) > 1
    assert results > 5000


def test_another_version_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interpreter._get_np_dtype, interpreter._patch_attr
    monkeypatch.setattr(triton, "__version__", "9.0.0")
    mended.quicken()
    assert (interpreter._get_np_dtype, interpreter._patch_attr) == before
