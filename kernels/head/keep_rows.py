"""keep_rows: rows of one tensor into rows of another, as they are or as RMSNorm leaves them.

    out[places[i], :] = x[sources[i], :]      or      x / sqrt(mean(x^2) + eps) * norm      of that row

Without sources row i is x[i], without places it goes to out[i]. A place below 0 keeps nothing.

Grid (R,): R sources or places, else the rows of x. A program takes one row as a whole, in registers.

Shapes    x [N, H], norm [H], out [M, H], sources [R], places [R]
Dtypes    x, norm, out fp32, fp16 or bf16, each its own; sums and products fp32, rounded once
Requires  H up to MAX_WIDTH; places that differ, but for those below 0; rows of x and out at any stride
Mutates   out
Rows      the bits of a row depend on nothing but that row
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.checks import check_computed_rightly
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from ..forward.rms_norm import MAX_HIDDEN as MAX_WIDTH
from ..forward.rms_norm import config


@triton.jit
def keep_rows_kernel(
    x_ptr,  # [N, H] at x_stride
    out_ptr,  # [M, H] at out_stride
    sources_ptr,  # [R] int32, or None
    places_ptr,  # [R] int64, or None
    norm_ptr,  # [H], or None
    H,
    eps,
    x_stride,
    out_stride,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    own = tl.program_id(0).to(tl.int64)
    source, place = own, own
    if sources_ptr is not None:
        source = tl.load(sources_ptr + own).to(tl.int64)
    if places_ptr is not None:
        place = tl.load(places_ptr + own)
    h = tl.arange(0, BLOCK_H)
    keep = (h < H) & (place >= 0)
    x = tl.load(x_ptr + source * x_stride + h, mask=keep, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        norm = tl.load(norm_ptr + h, mask=keep, other=0.0).to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, 0) / H + eps) * norm
    tl.store(out_ptr + place * out_stride + h, x.to(out_ptr.dtype.element_ty), mask=keep)


@operator
def keep_rows(
    x: Annotated[Tensor, "float [N, H] rows"],
    out: Annotated[Tensor, "float [M, H] rows out"],
    sources: Annotated[Tensor | None, "int32 [R]"] = None,
    places: Annotated[Tensor | None, "int64 [R]"] = None,
    norm: Annotated[Tensor | None, "float [H]"] = None,
    eps: float = 0.0,
    pdl: bool = False,
) -> None:
    """x: [N, H]; out: [M, H], of which the rows that are named are overwritten. pdl: see
    kernels/base/dependent.py.

    x = [[1, 2], [3, 4]], sources = [1, 0], places = [2, -1]: out[2] = [3, 4], and no other row is written.
    """
    check_computed_rightly("keep_rows", "out", out)
    H = x.shape[1]
    if H > MAX_WIDTH:
        raise ValueError(f"keep_rows: x has rows of {H} values, expected up to {MAX_WIDTH}: split them")
    named = sources if sources is not None else places
    rows = x.shape[0] if named is None else named.shape[0]
    if out.shape[0] < rows and places is None:
        raise ValueError(f"keep_rows: out has {out.shape[0]} rows, and {rows} are kept: pass a longer one")
    if x.shape[0] < rows and sources is None:
        raise ValueError(f"keep_rows: x has {x.shape[0]} rows, and {rows} are kept: pass a longer one")
    if rows == 0:
        return
    block_h, num_warps = config(H)
    keep_rows_kernel[(rows,)](
        *(x, out, sources, places, norm, H, eps, x.stride(0), out.stride(0)),
        BLOCK_H=block_h,
        num_warps=num_warps,
        **dependent("keep_rows", pdl),
    )
