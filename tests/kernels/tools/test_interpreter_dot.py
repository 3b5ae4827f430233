"""tl.dot in the interpreter: each sum in order of k, with any BLAS, and whatever stands beside a row."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as installed

from pearl_rt.kernels.base import checks, interpreter

SHAPES = [(16, 16, 16), (16, 128, 32), (64, 64, 64), (48, 100, 17), (128, 32, 128)]


def matrices(shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    *batch, m, k, n = shape
    rng = np.random.default_rng(list(shape))
    left, right = rng.standard_normal((*batch, m, k)), rng.standard_normal((*batch, k, n))
    return left.astype(dtype), right.astype(dtype)


def in_order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The definition, one k at a time, without a fused multiply-add."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        total = total + a[..., k, None] * b[..., None, k, :]
    return total


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 16, 64, 32), (8, 16, 32, 64)])
def test_sums_in_order(shape: tuple[int, ...], dtype: type) -> None:
    a, b = matrices(shape, dtype)
    transposed = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)  # as tl.trans gives it
    for right in (b, transposed):
        found = interpreter.sum_in_order(a, right, np.dtype(np.float32))
        np.testing.assert_array_equal(found, in_order(a, b))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_any_company(shape: tuple[int, ...]) -> None:
    a, b = matrices(shape, np.float32)
    whole = interpreter.sum_in_order(a, b, np.dtype(np.float32))
    for rows in (slice(0, 1), slice(3, 5), slice(1, 16)):
        found = interpreter.sum_in_order(a[rows], b, np.dtype(np.float32))
        np.testing.assert_array_equal(found, whole[rows])


@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    total = tl.full([N, N], 1.0, tl.float32)
    total = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), total, input_precision="ieee")
    tl.store(out_ptr + at, total)


# What runs BLAS, whose sums are ordered by the processor: numpy's functions, and its operator.
BLAS = ("matmul", "dot", "vdot", "inner", "tensordot", "linalg")


def test_the_interpreter_takes_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if not checks.interpreting():
        pytest.skip("kernels are compiled here")
    a, b = matrices((32, 32, 32), np.float32)
    out = torch.empty(32, 32)
    with monkeypatch.context() as without:
        for name in BLAS:
            without.delattr(np, name)
        product_kernel[(1,)](torch.from_numpy(a), torch.from_numpy(b), out, N=32)
    np.testing.assert_array_equal(out.numpy(), in_order(a, b) + 1)


def test_nothing_else_of_the_interpreter_reaches_blas() -> None:
    """tl.dot is the one place, and it is replaced."""
    source = inspect.getsource(installed)
    found = re.findall(rf"np\.(?:{'|'.join(BLAS)})\b.*|.* @ .*|einsum.*", source)
    assert len(found) == 1 and "np.matmul(a_data, b_data" in found[0], found
