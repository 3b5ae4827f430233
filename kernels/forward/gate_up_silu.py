"""out = silu(x @ gate.T) * (x @ up.T): both projections of a gated MLP in one pass over their weights.

    out[t, i] = silu(f[t] * sum_k x[t, k] * weight[i, k]) * f[t] * sum_k x[t, k] * weight[I + i, k]
    silu(z) = z / (1 + exp(-z)); f by squares as linear's, 1 without

Grid (ceil(T / 16), ceil(I / BLOCK_I)). A program takes 16 rows of x and BLOCK_I rows of each half of the
weight, and keeps a sum for each half. The loop over K, its slices and its pipeline are those of linear. K
is not split: the intermediate size of a gated MLP makes programs enough. With scales the weight is codes
of 8 or 4 bits, as linear's.

Shapes    x [T, K], weight [2 * I, K] (the gate's rows, then up's), out [T, I]; T 1..64, above it torch.mm
          (codes have none: pass blocks of rows); squares [T, num_parts(K)]
Dtypes    x, weight fp32, fp16 or bf16, alike; sums, squares and products fp32, rounded once; out fp32 or
          like x
Requires  rows of 16 * n bytes; x and weight aligned to 16 bytes; workspace_size bytes of workspace
Mutates   out, workspace
Live      num_live None, or [1] int32: at 0 nothing else is read, nothing written (torch.mm does not ask)
Rows      up to T = 64 the bits of a row depend on nothing but that row: the configuration follows (I, K)
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
from ..base.checks import check, check_workspace
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from .linear import MAX_ROWS, OPTIONS, THIN, num_parts
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

BLOCK_PRODUCT = 1024


@dataclass(frozen=True)
class Config:
    """How a weight [2 * I, K] is cut."""

    block_i: int  # rows of each half per program
    slice_k: int  # columns per warp and step
    num_stages: int

    def constexprs(self, K: int) -> dict[str, int]:
        """Of gate_up_silu_kernel."""
        is_even = K % (SLICES * self.slice_k) == 0
        return {"EVEN_K": is_even, "BLOCK_I": self.block_i, "SLICES": SLICES, "SLICE_K": self.slice_k}


def config(I: int, K: int, element_size: int) -> Config:  # noqa: E741
    """By the shape alone, never by the number of rows. Two programs at a time on a chip with 227 KiB."""
    columns = 128 // element_size  # of 128 bytes
    if I >= 32 * 132:  # 80 KiB each
        return Config(block_i=32, slice_k=columns // 2, num_stages=5)
    if I * K * element_size <= THIN:  # of a draft, as in linear: 60 KiB
        return Config(block_i=16, slice_k=columns // 2, num_stages=6)
    return Config(block_i=16, slice_k=columns, num_stages=5)  # 96 KiB each


def coded_config(I: int, K: int, element_size: int, form: WeightForm) -> Config:  # noqa: E741
    """Of a weight of codes, x of element_size: see linear."""
    block_i = config(I, K, 2).block_i
    stages = form.num_stages(2 * block_i, K, element_size, triton.cdiv(I, block_i))
    return Config(block_i, UNIT.value, stages)


def workspace_size(T: int, I: int, K: int) -> int:  # noqa: E741
    """Bytes of workspace that gate_up_silu needs for x [T, K] and weight [2 * I, K]."""
    return 8 * T * I if T > MAX_ROWS else 0


@triton.jit
def silu_product(
    gate,  # fp32
    up,  # fp32
):
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit(do_not_specialize=["T"])  # one binary for every number of rows
def gate_up_silu_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [2 * I, K], or codes
    scales_ptr,  # [units * words, 2 * I] int32, or None
    out_ptr,  # [T, I]
    num_live_ptr,  # [1] int32 or None
    squares_ptr,  # [T, num_parts] fp32 or None
    T,
    I,  # noqa: E741
    K,
    num_parts,
    eps,
    scales_stride,  # or None
    EVEN_K: tl.constexpr,  # K is a multiple of SLICES * SLICE_K
    BLOCK_I: tl.constexpr,
    SLICES: tl.constexpr,
    SLICE_K: tl.constexpr,
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
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    if squares_ptr is not None:
        part = tl.arange(0, PARTS)
        is_part = (m < T)[:, None] & (part < num_parts)[None, :]
        squares = tl.load(squares_ptr + m[:, None] * num_parts + part[None, :], mask=is_part, other=0.0)

    TILE: tl.constexpr = SLICE_K if FORM is None else HALF
    slices = tl.arange(0, SLICES)
    k = slices[:, None] * SLICE_K + tl.arange(0, TILE)[None, :]
    x_ptrs = x_ptr + m[None, :, None] * K + k[:, None, :]  # [SLICES, BLOCK_M, TILE]
    if FORM is None:
        gate_ptrs = weight_ptr + i.to(tl.int64)[None, None, :] * K + k[:, :, None]  # [SLICES, TILE, BLOCK_I]
        up_ptrs = weight_ptr + (I + i).to(tl.int64)[None, None, :] * K + k[:, :, None]
    else:
        gate_ptrs, gate_scales = coded_pointers(weight_ptr, scales_ptr, scales_stride, i, slices, K, FORM)
        up_ptrs, up_scales = coded_pointers(weight_ptr, scales_ptr, scales_stride, I + i, slices, K, FORM)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    is_row = (m < T)[None, :, None]
    is_weight = (i < I)[None, None, :]
    gate_total = tl.zeros((SLICES, BLOCK_M, BLOCK_I), tl.float32)
    up_total = tl.zeros((SLICES, BLOCK_M, BLOCK_I), tl.float32)
    for step in range(tl.cdiv(K, BLOCK_K)):
        left = K - step * BLOCK_K
        if FORM is None:
            if EVEN_K:
                x = tl.load(x_ptrs, mask=is_row, other=0.0)
                gate = tl.load(gate_ptrs, mask=is_weight, other=0.0)
                up = tl.load(up_ptrs, mask=is_weight, other=0.0)
            else:
                is_column = k < left
                x = tl.load(x_ptrs, mask=is_row & is_column[:, None, :], other=0.0)
                gate = tl.load(gate_ptrs, mask=is_weight & is_column[:, :, None], other=0.0)
                up = tl.load(up_ptrs, mask=is_weight & is_column[:, :, None], other=0.0)
            gate_total = tl.dot(x, gate, gate_total, input_precision="ieee")
            up_total = tl.dot(x, up, up_total, input_precision="ieee")
            gate_ptrs += BLOCK_K
            up_ptrs += BLOCK_K
        else:
            x, x_2 = load_two_tiles(x_ptrs, is_row, k, left, EVEN_K)
            gate, gate_2 = load_coded_tiles(
                gate_ptrs, gate_scales, scales_stride, step, is_weight, left, dtype, EVEN_K, SLICES, FORM
            )
            up, up_2 = load_coded_tiles(
                up_ptrs, up_scales, scales_stride, step, is_weight, left, dtype, EVEN_K, SLICES, FORM
            )
            gate_total = tl.dot(x, gate, gate_total, input_precision="ieee")
            gate_total = tl.dot(x_2, gate_2, gate_total, input_precision="ieee")
            up_total = tl.dot(x, up, up_total, input_precision="ieee")
            up_total = tl.dot(x_2, up_2, up_total, input_precision="ieee")
        x_ptrs += BLOCK_K

    gate, up = tl.sum(gate_total, 0), tl.sum(up_total, 0)
    if squares_ptr is not None:
        factor = tl.rsqrt(tl.sum(squares, 1) / K + eps)[:, None]
        gate *= factor
        up *= factor
    result = silu_product(gate, up)
    offsets = m.to(tl.int64)[:, None] * I + i[None, :]
    keep = (m < T)[:, None] & (i < I)[None, :]
    tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def silu_product_kernel(
    product_ptr,  # [T, 2 * I] fp32: x @ weight.T of many rows
    out_ptr,  # [T, I]
    squares_ptr,  # [T, num_parts] fp32 or None
    I,  # noqa: E741
    K,
    num_parts,
    eps,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,  # num_parts, up to a power of two
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = i < I
    gate = tl.load(product_ptr + 2 * row * I + i, mask=keep, other=0.0)
    up = tl.load(product_ptr + (2 * row + 1) * I + i, mask=keep, other=0.0)
    if squares_ptr is not None:
        part = tl.arange(0, PARTS)
        squares = tl.load(squares_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        gate *= factor
        up *= factor
    tl.store(out_ptr + row * I + i, silu_product(gate, up).to(out_ptr.dtype.element_ty), mask=keep)


@operator
def gate_up_silu(
    x: Annotated[Tensor, "float [T, K]"],
    weight: Annotated[Tensor, "x|int8|uint8 [N, B]"],
    out: Annotated[Tensor, "out"],
    workspace: Annotated[Tensor, "out"],
    num_live: Annotated[Tensor | None, "int32 [1]"] = None,
    squares: Annotated[Tensor | None, "fp32 [T, P]"] = None,
    eps: float = 0.0,
    pdl: bool = False,
    scales: Annotated[Tensor | None, "int32 [W, N] strided"] = None,
    group: int = 32,
) -> None:
    """x: [T, K]; weight: [2 * I, K], the gate's rows, then up's; out: [T, I] fp32 or as x, overwritten;
    workspace: uint8 [workspace_size(T, I, K)]; num_live: [1] int32 or None; squares, eps: what x was scaled
    from, fp32 [T, num_parts(K)] (see linear), or None: x is as it is; pdl: see kernels/base/dependent.py;
    scales, group: of a weight that is codes, see kernels/forward/weight_tile.py; T at most 64.

    x = [[1, 2, 0, 0]], weight = [[1, 0, 0, 0], [3, 1, 0, 0]]: I is 1, the gate 1, up 5, out [[3.6553]].
    """
    form = check_operands("gate_up_silu", x, weight, scales, group)
    (T, K), rows = x.shape, weight.shape[0]
    if rows % 2:
        raise ValueError(
            f"gate_up_silu: weight has {rows} rows, expected an even number: the gate's, then up's"
        )
    I = rows // 2  # noqa: E741
    check("gate_up_silu", "out", out, (T, I), torch.float32, x.dtype)
    if squares is not None:
        check("gate_up_silu", "squares", squares, (T, num_parts(K)))
    num_bytes = workspace_size(T, I, K)
    check_workspace("gate_up_silu", workspace, num_bytes)
    sizes = I, K, num_parts(K), eps
    options = {"PARTS": triton.next_power_of_2(num_parts(K)), **dependent("gate_up_silu", pdl), **OPTIONS}

    if T > MAX_ROWS and scales is not None:
        raise ValueError(f"gate_up_silu: {T} rows for codes, at most {MAX_ROWS}: pick them in blocks")
    if T > MAX_ROWS:
        product = workspace[:num_bytes].view(torch.float32).view(T, rows)
        multiply_many_rows(x, weight, product, None)
        grid = (T, triton.cdiv(I, BLOCK_PRODUCT))
        silu_product_kernel[grid](product, out, squares, *sizes, BLOCK=BLOCK_PRODUCT, **options)
        return
    size = x.element_size()
    cut = config(I, K, size) if scales is None else coded_config(I, K, size, form)
    gate_up_silu_kernel[(triton.cdiv(T, BLOCK_M.value), triton.cdiv(I, cut.block_i))](
        *(x, weight, scales, out, num_live, squares, T, *sizes, None if scales is None else scales.stride(0)),
        **cut.constexprs(K),
        FORM=form.constexpr,
        num_warps=SLICES,
        num_stages=cut.num_stages,
        **options,
    )
