"""out = x @ weight.T + bias, or residual += that, for few rows: a pass over the weights at memory speed.

    out[t, n] = f[t] * sum_k x[t, k] * weight[n, k] + bias[n]

RMSNorm in two halves, so that it needs no launch. The layer that adds to the residual also writes, for the
layer that reads it next, scaled[t, n] = residual[t, n] * next_norm[n], rounded once, and the sums of
residual[t, n]^2 over parts of part_width(N) columns. That layer is given both as x and squares, and then
f[t] = 1 / sqrt(sum_p squares[t, p] / K + eps); without squares f is 1. In fp16 |residual * next_norm| must
stay below 65504: above, results are infinite.

Grid (ceil(T / 16), ceil(N / BLOCK_N), SPLIT_K). A program takes 16 rows of x, BLOCK_N rows of the weight
and one of SPLIT_K ranges of K. Tiles of x are innermost, so that the next one finds the tile of weights in
L2; from memory every weight is read once, 16 bytes a load, along K. A step of the loop reads SLICES *
SLICE_K columns; slice i belongs to warp i, which sums it by itself (one chain of K / 16 dependent products
can outlast the memory), and the slices are added at the end. Steps are pipelined: num_stages - 1 of them
have a buffer and are on their way.
SPLIT_K > 1: the sums go to the workspace, and a second kernel adds them in the order of their index.

With scales the weight is codes of 8 or 4 bits (kernels/forward/weight_tile.py). They become values in
registers, rounded to the dtype of x. A slice has a unit of 64 columns then, and adds its first half first.

Shapes    x [T, K], weight [N, K], out [M, N], bias [N], residual [M, N]; with rows [M] row i is x[rows[i]],
          else M = T; M 1..64, above it torch.mm (codes have none: pass blocks of rows); squares
          [T, num_parts(K)], next_squares [M, num_parts(N)]
Dtypes    x, weight, bias, next_norm, scaled fp32, fp16 or bf16, all alike; sums and squares fp32; out fp32 or
          like x; residual fp32
Requires  rows of 16 * n bytes; x and weight aligned to 16 bytes; workspace_size bytes of workspace
Mutates   out or residual, scaled, next_squares, workspace
Live      num_live None, or [1] int32: at 0 nothing else is read, nothing written (torch.mm does not ask)
Rows      up to M = 64 the bits of a row depend on nothing but that row: the configuration follows (N, K)
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.checks import check, check_workspace
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from .weight_tile import (
    BLOCK_M,
    HALF,
    SLICES,
    UNIT,
    WeightForm,
    check_operands,
    coded_pointers,
    load_coded_tiles,
    load_two_tiles,
    multiply_many_rows,
)

MAX_ROWS = 64  # of the kernel; more go to torch.mm
BLOCK_REDUCE, REDUCE_WARPS = 256, 2  # one load of 16 bytes a thread
THIN = 2 << 20  # bytes of a weight that is bound by launches, not by memory
# A row has the same bits in each specialisation: no multiply-adds that come and go with the code around them.
OPTIONS = {"enable_fp_fusion": False}


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
    if N * K * element_size <= THIN and K < 4096:
        # Of a draft: up to 64 KiB, all of a row of K = 768, which find room beside two programs of 80 KiB.
        steps = triton.cdiv(K, SLICES * columns)
        return Config(block_n=16, slice_k=columns, split_k=1, num_stages=min(5, steps + 1))
    programs, split_k = triton.cdiv(N, 16), 1
    while split_k < 8 and split_k * programs < 64 and split_k * 4096 <= K:
        split_k *= 2
    return Config(block_n=16, slice_k=2 * columns, split_k=split_k, num_stages=5)  # one wave of one: 128 KiB


def coded_config(N: int, K: int, element_size: int, form: WeightForm) -> Config:
    """Of a weight of codes, x of element_size: N and K are cut as config does it for elements of 16 bits."""
    cut = config(N, K, 2)
    programs = triton.cdiv(N, cut.block_n) * cut.split_k
    stages = form.num_stages(cut.block_n, K, element_size, programs)
    return replace(cut, slice_k=UNIT.value, num_stages=stages)


def part_width(N: int) -> int:
    """Columns whose squares are summed as one: what a program of linear has of a row of N."""
    return config(N, 1, 2).block_n


def num_parts(N: int) -> int:
    """Parts of a row of N columns."""
    return triton.cdiv(N, part_width(N))


def workspace_size(T: int, N: int, K: int) -> int:
    """Bytes of workspace that linear needs for x [T, K] and weight [N, K]."""
    if T > MAX_ROWS:
        return 4 * T * N
    split_k = config(N, K, 2).split_k  # the same for every element size
    return 4 * split_k * T * N if split_k > 1 else 0


@triton.jit(do_not_specialize=["M"])  # one binary for every number of rows
def linear_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K], or codes
    scales_ptr,  # [units * words, N] int32, or None
    out_ptr,  # [M, N], IS_RESIDUAL: the residual; SPLIT_K > 1: the workspace [SPLIT_K, M, N] fp32
    bias_ptr,  # [N] or None
    num_live_ptr,  # [1] int32 or None
    rows_ptr,  # [M] int32 or None
    squares_ptr,  # [T, num_parts] fp32 or None
    norm_ptr,  # [N] or None: the next two are not written
    scaled_ptr,  # [M, N]
    next_squares_ptr,  # [M, ceil(N / BLOCK_N)] fp32
    M,
    N,
    K,
    num_parts,
    eps,
    scales_stride,  # or None
    HAS_BIAS: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of SPLIT_K * SLICES * SLICE_K
    BLOCK_N: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    PARTS: tl.constexpr,  # num_parts, up to a power of two
    FORM: tl.constexpr,  # of a weight: see WeightForm
    PDL: tl.constexpr,
):
    await_previous(PDL)
    if num_live_ptr is not None:  # noqa: SIM102 (decided when compiled)
        if tl.load(num_live_ptr) == 0:
            return
    BLOCK_K: tl.constexpr = SLICES * SLICE_K
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    row = m
    if rows_ptr is not None:
        row = tl.load(rows_ptr + m, mask=m < M, other=0)
    keep = (m < M)[:, None] & (n < N)[None, :]
    offsets = (split * M + m).to(tl.int64)[:, None] * N + n[None, :]
    if HAS_BIAS:  # what the end needs is asked for first, to arrive with the weights
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if IS_RESIDUAL:
        residual = tl.load(out_ptr + offsets, mask=keep, other=0.0)
    if squares_ptr is not None:
        part = tl.arange(0, PARTS)
        is_part = (m < M)[:, None] & (part < num_parts)[None, :]
        squares = tl.load(squares_ptr + row[:, None] * num_parts + part[None, :], mask=is_part, other=0.0)
    if norm_ptr is not None:
        next_norm = tl.load(norm_ptr + n, mask=n < N, other=0.0).to(tl.float32)

    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    first = split * steps * BLOCK_K
    TILE: tl.constexpr = SLICE_K if FORM is None else HALF
    k = tl.arange(0, SLICES)[:, None] * SLICE_K + tl.arange(0, TILE)[None, :]

    x_ptrs = x_ptr + first + row[None, :, None] * K + k[:, None, :]  # [SLICES, BLOCK_M, TILE]
    if FORM is None:
        weight_rows = weight_ptr + first + n.to(tl.int64) * K
        weight_ptrs = weight_rows[None, None, :] + k[:, :, None]  # [SLICES, TILE, BLOCK_N]
    else:
        unit = first // SLICE_K + tl.arange(0, SLICES)
        weight_ptrs, scale_ptrs = coded_pointers(weight_ptr, scales_ptr, scales_stride, n, unit, K, FORM)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    is_row = (m < M)[None, :, None]
    is_weight = (n < N)[None, None, :]
    total = tl.zeros((SLICES, BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        left = K - first - step * BLOCK_K
        if FORM is None:
            if EVEN_K:
                x = tl.load(x_ptrs, mask=is_row, other=0.0)
                weight = tl.load(weight_ptrs, mask=is_weight, other=0.0)
            else:
                x = tl.load(x_ptrs, mask=is_row & (k < left)[:, None, :], other=0.0)
                weight = tl.load(weight_ptrs, mask=is_weight & (k < left)[:, :, None], other=0.0)
            total = tl.dot(x, weight, total, input_precision="ieee")
            weight_ptrs += BLOCK_K
        else:
            x, x_2 = load_two_tiles(x_ptrs, is_row, k, left, EVEN_K)
            weight, weight_2 = load_coded_tiles(
                weight_ptrs, scale_ptrs, scales_stride, step, is_weight, left, dtype, EVEN_K, SLICES, FORM
            )
            total = tl.dot(x, weight, total, input_precision="ieee")
            total = tl.dot(x_2, weight_2, total, input_precision="ieee")
        x_ptrs += BLOCK_K

    sums = tl.sum(total, 0)
    if squares_ptr is not None:
        sums *= tl.rsqrt(tl.sum(squares, 1) / K + eps)[:, None]
    if HAS_BIAS:
        sums += bias[None, :]
    if IS_RESIDUAL:
        sums += residual
    tl.store(out_ptr + offsets, sums.to(out_ptr.dtype.element_ty), mask=keep)
    if norm_ptr is not None:
        scaled = sums * next_norm[None, :]
        tl.store(scaled_ptr + offsets, scaled.to(scaled_ptr.dtype.element_ty), mask=keep)
        place = next_squares_ptr + m * tl.num_programs(1) + tl.program_id(1)
        tl.store(place, tl.sum(sums * sums, 1), mask=m < M)


@triton.jit(do_not_specialize=["M"])
def add_splits_kernel(
    sums_ptr,  # [SPLIT_K, M, N] fp32
    out_ptr,  # [M, N]
    bias_ptr,  # [N] or None
    num_live_ptr,  # [1] int32 or None
    rows_ptr,  # [M] int32 or None
    squares_ptr,  # [T, num_parts] fp32 or None
    norm_ptr,  # [N] or None: the next two are not written
    scaled_ptr,  # [M, N]
    next_squares_ptr,  # [M, next_parts] fp32
    M,
    N,
    K,
    num_parts,
    next_parts,
    eps,
    HAS_BIAS: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,  # num_parts, up to a power of two
    WIDTH: tl.constexpr,  # of a part of N
    PDL: tl.constexpr,
):
    await_previous(PDL)
    if num_live_ptr is not None:  # noqa: SIM102 (decided when compiled)
        if tl.load(num_live_ptr) == 0:
            return
    m = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = n < N
    offsets = m.to(tl.int64) * N + n
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT_K):
        total += tl.load(sums_ptr + split * M.to(tl.int64) * N + offsets, mask=keep, other=0.0)
    if squares_ptr is not None:
        row = m
        if rows_ptr is not None:
            row = tl.load(rows_ptr + m)
        part = tl.arange(0, PARTS)
        squares = tl.load(squares_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
        total *= tl.rsqrt(tl.sum(squares, 0) / K + eps)
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=keep, other=0.0).to(tl.float32)
    if IS_RESIDUAL:
        total += tl.load(out_ptr + offsets, mask=keep, other=0.0)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=keep)
    if norm_ptr is not None:
        scaled = total * tl.load(norm_ptr + n, mask=keep, other=0.0).to(tl.float32)
        tl.store(scaled_ptr + offsets, scaled.to(scaled_ptr.dtype.element_ty), mask=keep)
        next_squares = tl.sum(tl.reshape(total * total, (BLOCK // WIDTH, WIDTH)), 1)
        part = tl.program_id(1) * (BLOCK // WIDTH) + tl.arange(0, BLOCK // WIDTH)
        tl.store(next_squares_ptr + m * next_parts + part, next_squares, mask=part < next_parts)


@operator
def linear(
    x: Annotated[Tensor, "float [T, K]"],
    weight: Annotated[Tensor, "x|int8|uint8 [N, B]"],
    out: Annotated[Tensor | None, "fp32|x [M, N] out"],
    bias: Annotated[Tensor | None, "x [N]"],
    residual: Annotated[Tensor | None, "fp32 [M, N] out"],
    workspace: Annotated[Tensor, "out"],
    num_live: Annotated[Tensor | None, "int32 [1]"] = None,
    rows: Annotated[Tensor | None, "int32 [M]"] = None,
    squares: Annotated[Tensor | None, "fp32 [T, P]"] = None,
    eps: float = 0.0,
    next_norm: Annotated[Tensor | None, "x [N]"] = None,
    scaled: Annotated[Tensor | None, "x [M, N] out"] = None,
    next_squares: Annotated[Tensor | None, "fp32 [M, Q] out"] = None,
    pdl: bool = False,
    scales: Annotated[Tensor | None, "int32 [W, N] strided"] = None,
    group: int = 32,
) -> None:
    """x: [T, K]; weight: [N, K]; out: [M, N] fp32 or as x, overwritten, and None if there is a residual;
    bias: [N] or None; residual: [M, N] fp32, added to, or None; workspace: uint8 [workspace_size(M, N, K)];
    num_live: [1] int32 or None; rows: [M] int32, rows of x, M at most 64, or None: all.

    squares, eps: what x was scaled from, fp32 [T, num_parts(K)], or None: x is as it is.
    next_norm: [N]; scaled: [M, N] as x and next_squares: [M, num_parts(N)] fp32, both overwritten: of
    the residual, for the layer that reads it next. All three or none. pdl: see kernels/base/dependent.py.
    scales, group: of a weight that is codes, see kernels/forward/weight_tile.py; M at most 64.

    x = [[1, 2, 3, 4]], weight = [[1, 0, 0, 0], [0, 1, 0, 1]], bias = [0, 10]: out = [[1, 16]].
    With squares = [[15]], eps = 0.25: the mean is 4, f 1 / 2, out = [[0.5, 13]].
    """
    form = check_operands("linear", x, weight, scales, group)
    (T, K), N = x.shape, weight.shape[0]
    M = T if rows is None else rows.shape[0]
    if (out is None) == (residual is None):
        given = "both" if residual is not None else "neither"
        raise ValueError(
            f"linear: {given} of out and residual given, expected one: the residual is an output"
        )
    target = residual if out is None else out
    assert target is not None
    check("linear", "out" if residual is None else "residual", target, (M, N))
    folds = [residual is not None, *(tensor is not None for tensor in (next_norm, scaled, next_squares))]
    if any(folds[1:]) and not all(folds):
        raise ValueError(
            "linear: next_norm, scaled and next_squares belong to a residual: pass all four, or the residual"
        )
    for name, tensor, size in (("squares", squares, K), ("next_squares", next_squares, N)):
        if tensor is not None:
            check("linear", name, tensor, (None, num_parts(size)))
    for what, is_given in (("are picked of x", rows is not None), ("for codes", scales is not None)):
        if M > MAX_ROWS and is_given:
            raise ValueError(f"linear: {M} rows {what}, at most {MAX_ROWS}: pick them in blocks")
    num_bytes = workspace_size(M, N, K)
    check_workspace("linear", workspace, num_bytes)
    sums = workspace[:num_bytes].view(torch.float32)

    if M > MAX_ROWS and residual is None and squares is None:
        multiply_many_rows(x, weight, target, bias)
        return
    flags = {"HAS_BIAS": bias is not None, "IS_RESIDUAL": residual is not None}
    size = x.element_size()
    cut = config(N, K, size) if scales is None else coded_config(N, K, size, form)
    is_split = cut.split_k > 1
    sources = rows, squares, next_norm, scaled, next_squares
    parts = {"PARTS": triton.next_power_of_2(num_parts(K)), **dependent("linear", pdl)}
    if M > MAX_ROWS:
        multiply_many_rows(x, weight, sums.view(M, N), None)
        num_live = None
    else:
        linear_kernel[(triton.cdiv(M, BLOCK_M.value), triton.cdiv(N, cut.block_n), cut.split_k)](
            *(x, weight, scales, sums if is_split else target, None if is_split else bias, num_live),
            *((rows, None, None, None, None) if is_split else sources),
            *(M, N, K, num_parts(K), eps, None if scales is None else scales.stride(0)),
            **cut.constexprs(K),
            FORM=form.constexpr,
            **(dict.fromkeys(flags, False) if is_split else flags),
            **parts,
            num_warps=SLICES,
            num_stages=cut.num_stages,
            **OPTIONS,
        )
        if not is_split:
            return
    add_splits_kernel[(M, triton.cdiv(N, BLOCK_REDUCE))](
        *(sums, target, bias, num_live, *sources),
        *(M, N, K, num_parts(K), num_parts(N), eps),
        **flags,
        **parts,
        SPLIT_K=1 if M > MAX_ROWS else cut.split_k,
        BLOCK=BLOCK_REDUCE,
        WIDTH=cut.block_n,
        num_warps=REDUCE_WARPS,
        **OPTIONS,
    )
