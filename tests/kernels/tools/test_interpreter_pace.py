"""What the interpreter remembers of types is what Triton would build again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from compiled import skip_where_compiled
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


def test_another_version_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interpreter._get_np_dtype, interpreter._patch_attr
    monkeypatch.setattr(triton, "__version__", "9.0.0")
    mended.quicken()
    assert (interpreter._get_np_dtype, interpreter._patch_attr) == before
