"""out = x @ weight.T + bias, or residual += that, for few rows: a pass over the weights at memory speed.

    out[t, n] = sum_k x[t, k] * weight[n, k] + bias[n]

Grid (ceil(T / 16), ceil(N / BLOCK_N), SPLIT_K). A program takes 16 rows of x, BLOCK_N rows of the weight
and one of SPLIT_K ranges of K. Tiles of x are innermost, so that the next one finds the tile of weights in
L2; from memory every weight is read once, 16 bytes a load, along K. A step of the loop reads SLICES *
SLICE_K columns; slice i belongs to warp i, which sums it by itself (one chain of K / 16 dependent products
can outlast the memory), and the slices are added at the end. Steps are pipelined: num_stages - 1 of them
have a buffer and are on their way.
SPLIT_K > 1: the sums go to the workspace, and a second kernel adds them in the order of their index.

Shapes    x [T, K], weight [N, K], out [T, N], bias [N], residual [T, N]; T 1..64, above it torch.mm
Dtypes    x, weight, bias fp32, fp16 or bf16, all alike; sums fp32; out fp32 or like weight; residual fp32
Requires  rows of 16 * n bytes; x and weight aligned to 16 bytes; workspace_size bytes of workspace
Mutates   out or residual, workspace
Live      num_live None, or [1] int32: at 0 nothing else is read, nothing written (torch.mm does not ask)
Rows      up to T = 64 the bits of a row depend on nothing but that row: the configuration follows (N, K)
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.checks import check_computed_rightly, check_workspace
from ..base.library import operator

MAX_ROWS = 64  # of the kernel; more go to torch.mm
BLOCK_M = tl.constexpr(16)
BLOCK_REDUCE, REDUCE_WARPS = 256, 2  # one load of 16 bytes a thread
SLICES = 4  # one per warp


@dataclass(frozen=True)
class Config:
    """How a weight [N, K] is cut."""

    block_n: int  # rows of the weight per program
    slice_k: int  # columns per warp and step
    split_k: int
    num_stages: int

    def constexprs(self, K: int) -> dict[str, int]:
        """Of linear_kernel."""
        is_even = K % (self.split_k * SLICES * self.slice_k) == 0
        return {
            "EVEN_K": is_even,
            "BLOCK_N": self.block_n,
            "SLICES": SLICES,
            "SLICE_K": self.slice_k,
            "SPLIT_K": self.split_k,
        }


def config(N: int, K: int, element_size: int) -> Config:
    """By the shape alone, never by the number of rows. For 132 multiprocessors of 227 KiB; fits 163 KiB too.

    Wide programs read x less often from L2, narrow ones are more. Some 100 programs should draw the whole
    bandwidth if each has 60 KiB of weights on their way, and then the last wave needs no filling. A second
    kernel costs more than its split saves, unless programs are very few and K is long.
    """
    columns = 128 // element_size  # of 128 bytes
    if N >= 64 * 256:  # several waves of programs, two at a time: 80 KiB each
        return Config(block_n=64, slice_k=columns // 2, split_k=1, num_stages=5)
    if N > 32 * 132:  # two at a time: 96 KiB each
        return Config(block_n=32, slice_k=columns, split_k=1, num_stages=5)
    if N >= 32 * 96:  # one wave of one: 144 KiB
        return Config(block_n=32, slice_k=columns, split_k=1, num_stages=7)
    if N > 16 * 132:  # two at a time: 96 KiB each
        return Config(block_n=16, slice_k=columns, split_k=1, num_stages=7)
    programs, split_k = triton.cdiv(N, 16), 1
    while split_k < 8 and split_k * programs < 64 and split_k * 4096 <= K:
        split_k *= 2
    return Config(block_n=16, slice_k=2 * columns, split_k=split_k, num_stages=5)  # one wave of one: 128 KiB


def workspace_size(T: int, N: int, K: int) -> int:
    """Bytes of workspace that linear needs for x [T, K] and weight [N, K]."""
    if T > MAX_ROWS:
        return 4 * T * N
    split_k = config(N, K, 2).split_k  # the same for every element size
    return 4 * split_k * T * N if split_k > 1 else 0


@triton.jit(do_not_specialize=["T"])  # one binary for every number of rows
def linear_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    out_ptr,  # [T, N], IS_RESIDUAL: the residual; SPLIT_K > 1: the workspace [SPLIT_K, T, N] fp32
    bias_ptr,  # [N] or None
    num_live_ptr,  # [1] int32 or None
    T,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of SPLIT_K * SLICES * SLICE_K
    BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    if num_live_ptr is not None:  # noqa: SIM102 (decided when compiled)
        if tl.load(num_live_ptr) == 0:
            return
    BLOCK_K: tl.constexpr = SLICES * SLICE_K
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    keep = (m < T)[:, None] & (n < N)[None, :]
    offsets = (split * T + m).to(tl.int64)[:, None] * N + n[None, :]
    if HAS_BIAS:  # what the end needs is asked for first, to arrive with the weights
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if IS_RESIDUAL:
        residual = tl.load(out_ptr + offsets, mask=keep, other=0.0)

    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    first = split * steps * BLOCK_K
    k = tl.arange(0, SLICES)[:, None] * SLICE_K + tl.arange(0, SLICE_K)[None, :]

    x_ptrs = x_ptr + first + m[None, :, None] * K + k[:, None, :]  # [SLICES, BLOCK_M, SLICE_K]
    weight_rows = weight_ptr + first + n.to(tl.int64) * K
    weight_ptrs = weight_rows[None, None, :] + k[:, :, None]  # [SLICES, SLICE_K, BLOCK_N]
    is_row = (m < T)[None, :, None]
    is_weight = (n < N)[None, None, :]
    total = tl.zeros((SLICES, BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=is_row, other=0.0)
            weight = tl.load(weight_ptrs, mask=is_weight, other=0.0)
        else:
            left = K - first - step * BLOCK_K
            x = tl.load(x_ptrs, mask=is_row & (k < left)[:, None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=is_weight & (k < left)[:, :, None], other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K

    sums = tl.sum(total, 0)
    if HAS_BIAS:
        sums += bias[None, :]
    if IS_RESIDUAL:
        sums += residual
    tl.store(out_ptr + offsets, sums.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["T"])
def add_splits_kernel(
    sums_ptr,  # [SPLIT_K, T, N] fp32
    out_ptr,  # [T, N]
    bias_ptr,  # [N] or None
    num_live_ptr,  # [1] int32 or None
    T,
    N,
    HAS_BIAS: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if num_live_ptr is not None:  # noqa: SIM102 (decided when compiled)
        if tl.load(num_live_ptr) == 0:
            return
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = n < N
    offsets = row.to(tl.int64) * N + n
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT_K):
        total += tl.load(sums_ptr + split * T.to(tl.int64) * N + offsets, mask=keep, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=keep, other=0.0).to(tl.float32)
    if IS_RESIDUAL:
        total += tl.load(out_ptr + offsets, mask=keep, other=0.0)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=keep)


@torch.no_grad()
def multiply_many_rows(
    x: torch.Tensor, weight: torch.Tensor, product: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """product [T, N] = x @ weight.T + bias by torch, in the dtype of product."""
    if product.dtype == x.dtype:
        if bias is None:
            torch.mm(x, weight.t(), out=product)
        else:
            torch.addmm(bias, x, weight.t(), out=product)
        return
    if x.is_cuda:
        torch.mm(x, weight.t(), out_dtype=product.dtype, out=product)
    else:  # torch has no product of two dtypes there
        torch.mm(x.to(product.dtype), weight.to(product.dtype).t(), out=product)
    if bias is not None:
        product.add_(bias)


def check_operands(op: str, x: Tensor, weight: Tensor) -> None:
    """x [T, K] and weight [N, K] can be read by the kernels: in rows of 16 * n bytes."""
    check_computed_rightly(op, "x", x)
    row_bytes = x.shape[1] * x.element_size()
    if row_bytes % 16 or row_bytes == 0:
        raise ValueError(
            f"{op}: K is {x.shape[1]}, rows have {row_bytes} bytes, expected a multiple of 16: pad K by zeros"
        )
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.data_ptr() % 16:
            raise ValueError(f"{op}: {name} starts at {tensor.data_ptr():#x}: align it to 16 bytes")


@operator
def linear(
    x: Annotated[Tensor, "float [T, K]"],
    weight: Annotated[Tensor, "x [N, K]"],
    out: Annotated[Tensor | None, "fp32|weight [T, N] out"],
    bias: Annotated[Tensor | None, "weight [N]"],
    residual: Annotated[Tensor | None, "fp32 [T, N] out"],
    workspace: Annotated[Tensor, "out"],
    num_live: Annotated[Tensor | None, "int32 [1]"] = None,
) -> None:
    """x: [T, K]; weight: [N, K]; out: [T, N] fp32 or as weight, overwritten, and None if there is a residual;
    bias: [N] or None; residual: [T, N] fp32, added to, or None; workspace: uint8 [workspace_size(T, N, K)];
    num_live: [1] int32 or None.

    x = [[1, 2, 3, 4]], weight = [[1, 0, 0, 0], [0, 1, 0, 1]], bias = [0, 10]: out = [[1, 16]].
    """
    check_operands("linear", x, weight)
    (T, K), N = x.shape, weight.shape[0]
    if (out is None) == (residual is None):
        given = "both" if residual is not None else "neither"
        raise ValueError(
            f"linear: {given} of out and residual given, expected one: the residual is an output"
        )
    num_bytes = workspace_size(T, N, K)
    check_workspace("linear", workspace, num_bytes)
    sums = workspace[:num_bytes].view(torch.float32)

    if T > MAX_ROWS:
        product = sums.view(T, N) if out is None else out
        multiply_many_rows(x, weight, product, bias)
        if residual is not None:
            residual.add_(product)
        return
    target = residual if out is None else out
    flags = {"HAS_BIAS": bias is not None, "IS_RESIDUAL": residual is not None}
    cut = config(N, K, weight.element_size())
    is_split = cut.split_k > 1
    linear_kernel[(triton.cdiv(T, BLOCK_M.value), triton.cdiv(N, cut.block_n), cut.split_k)](
        *(x, weight, sums if is_split else target, None if is_split else bias, num_live, T, N, K),
        **cut.constexprs(K),
        **(dict.fromkeys(flags, False) if is_split else flags),
        num_warps=SLICES,
        num_stages=cut.num_stages,
    )
    if is_split:
        grid = (T, triton.cdiv(N, BLOCK_REDUCE))
        constants = {**flags, "SPLIT_K": cut.split_k, "BLOCK": BLOCK_REDUCE}
        add_splits_kernel[grid](sums, target, bias, num_live, T, N, **constants, num_warps=REDUCE_WARPS)
