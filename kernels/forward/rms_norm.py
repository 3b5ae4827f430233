"""out = x / sqrt(mean(x^2) + eps) * weight by row; with a residual: residual += x, and out is its norm.

Grid (T,). A program takes one row as a whole, in registers: BLOCK_H is H rounded up to a power of two.

Shapes    x [T, H], weight [H], out [T, H], residual [T, H]
Dtypes    x, weight, out fp32, fp16 or bf16, each its own; residual fp32; sums and products fp32, rounded once
Requires  H up to 32768; tensors aligned to 16 bytes, as torch allocates them, for bits that do not vary
Mutates   out, residual
Rows      the bits of a row depend on nothing but that row: the configuration follows H
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import check_computed_rightly
from ..base.library import operator

MAX_HIDDEN = 32768  # 64 values a thread


def config(H: int) -> tuple[int, int]:
    """BLOCK_H and the number of warps: 8 values a thread, a load of 16 bytes, up to 512 threads."""
    block_h = triton.next_power_of_2(H)
    return block_h, min(16, max(1, block_h // 256))


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [T, H]
    weight_ptr,  # [H]
    out_ptr,  # [T, H]
    residual_ptr,  # [T, H] fp32 or None
    H,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    h = tl.arange(0, BLOCK_H)
    keep = h < H
    offsets = tl.program_id(0).to(tl.int64) * H + h
    x = tl.load(x_ptr + offsets, mask=keep, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + h, mask=keep, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + offsets, mask=keep, other=0.0)
        tl.store(residual_ptr + offsets, x, mask=keep)
    scale = tl.rsqrt(tl.sum(x * x, 0) / H + eps)
    tl.store(out_ptr + offsets, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=keep)


@operator
def rms_norm(
    x: Annotated[Tensor, "float [T, H]"],
    weight: Annotated[Tensor, "float [H]"],
    eps: float,
    out: Annotated[Tensor, "float [T, H] out"],
    residual: Annotated[Tensor | None, "fp32 [T, H] out"],
) -> None:
    """x: [T, H]; weight: [H]; out: [T, H], overwritten; residual: [T, H] fp32, x is added to it, or None.

    x = [[3, 4, 0, 0]], weight = [1, 1, 1, 2], eps = 0: the mean of squares is 6.25, out = [[1.2, 1.6, 0, 0]].
    """
    check_computed_rightly("rms_norm", "out", out)
    T, H = x.shape
    if not 1 <= H <= MAX_HIDDEN:
        raise ValueError(f"rms_norm: x has rows of {H} values, expected 1 to {MAX_HIDDEN}: split them")
    block_h, num_warps = config(H)
    rms_norm_kernel[(T,)](
        *(x, weight, out, residual, H, eps),
        HAS_RESIDUAL=residual is not None,
        BLOCK_H=block_h,
        num_warps=num_warps,
    )
