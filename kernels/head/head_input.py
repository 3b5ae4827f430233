"""head_input: what the layer of an EAGLE-3 head reads, of a token and a feature.

    embedded = weight[clamp(input_ids[t], 0, V - 1), :]
    x[t, :] = norm(embedded) * embedded_norm, norm(feature) * feature_norm
    residual[t, :] = feature, or norm(feature) * feature_norm if keeps_norm
    norm(v) = v / sqrt(mean(v^2) + eps)

With places [T] the feature of row t is features[places[t]], and of padding, whose place is below 0, it is 0.
With ends [F + 1] there is a feature for each sequence: that of sequence b is features[b], for row ends[b], if
ends[b + 1] > ends[b]; no other row is written.

Grid (T,), or (F,) with ends. A program takes one row as a whole, in registers.

Shapes    input_ids [T] int32; weight [V, H] fp32, fp16 or bf16, or codes of 8 or 4 bits
          (kernels/forward/weight_tile.py); features [F, H]; x [T, 2 H]; residual [T, H]
Dtypes    features fp32, fp16 or bf16; norms and x alike; residual fp32; sums and products fp32, rounded once
Requires  contiguous tensors on one device; H up to MAX_WIDTH
Mutates   x, residual
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
from ..forward.weight_tile import form_of, load_coded_row


@triton.jit
def head_input_kernel(
    input_ids_ptr,  # [T] int32
    weight_ptr,  # [V, H], or codes
    scales_ptr,  # or None
    features_ptr,  # [F, H]
    places_ptr,  # [T] int64, or None
    ends_ptr,  # [F + 1] int32, or None
    embedded_norm_ptr,  # [H]
    feature_norm_ptr,  # [H]
    x_ptr,  # [T, 2 H]
    residual_ptr,  # [T, H] fp32
    vocab_size,
    H,
    eps,
    scales_stride,  # or None
    KEEPS_NORM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    FORM: tl.constexpr,  # of the table: see WeightForm
    PDL: tl.constexpr,
):
    await_previous(PDL)
    own = tl.program_id(0).to(tl.int64)
    if places_ptr is not None:
        row, source = own, tl.load(places_ptr + own)
        is_fed = source >= 0
    else:
        row, source = tl.load(ends_ptr + own).to(tl.int64), own
        is_fed = tl.load(ends_ptr + own + 1).to(tl.int64) > row
    h = tl.arange(0, BLOCK_H)
    inside = h < H
    is_written = inside & (is_fed | (places_ptr is not None))
    token = tl.load(input_ids_ptr + row, mask=is_fed, other=0)
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1).to(tl.int64)
    if FORM is None:
        embedded = tl.load(weight_ptr + token * H + h, mask=inside, other=0.0).to(tl.float32)
    else:
        embedded = load_coded_row(weight_ptr, scales_ptr, scales_stride, token, h, H, FORM)
    feature = tl.load(features_ptr + source * H + h, mask=inside & is_fed, other=0.0).to(tl.float32)
    embedded_norm = tl.load(embedded_norm_ptr + h, mask=inside, other=0.0).to(tl.float32)
    feature_norm = tl.load(feature_norm_ptr + h, mask=inside, other=0.0).to(tl.float32)
    embedded *= tl.rsqrt(tl.sum(embedded * embedded, 0) / H + eps) * embedded_norm
    normed = feature * tl.rsqrt(tl.sum(feature * feature, 0) / H + eps) * feature_norm
    to = x_ptr + row * 2 * H + h
    tl.store(to, embedded.to(x_ptr.dtype.element_ty), mask=is_written)
    tl.store(to + H, normed.to(x_ptr.dtype.element_ty), mask=is_written)
    tl.store(residual_ptr + row * H + h, normed if KEEPS_NORM else feature, mask=is_written)


@operator
def head_input(
    input_ids: Annotated[Tensor, "int32 [T]"],
    weight: Annotated[Tensor, "float|int8|uint8 [V, B]"],
    features: Annotated[Tensor, "float [F, H]"],
    places: Annotated[Tensor | None, "int64 [T]"],
    ends: Annotated[Tensor | None, "int32 [F + 1]"],
    embedded_norm: Annotated[Tensor, "float [H]"],
    feature_norm: Annotated[Tensor, "embedded_norm [H]"],
    eps: float,
    keeps_norm: bool,
    x: Annotated[Tensor, "embedded_norm [T, H + H] out"],
    residual: Annotated[Tensor, "fp32 [T, H] out"],
    pdl: bool = False,
    scales: Annotated[Tensor | None, "int32 [W, V] strided"] = None,
    group: int = 32,
) -> None:
    """x: [T, 2 * H] and residual: [T, H] fp32, overwritten where rows are fed. One of places and ends is
    None. pdl: see kernels/base/dependent.py. scales, group: of a table of codes.
    """
    check_computed_rightly("head_input", "x", x)
    hidden_size, vocab_size = features.shape[1], weight.shape[0]
    form = form_of("head_input", weight, scales, group, hidden_size)
    if (places is None) == (ends is None):
        raise ValueError("head_input: pass places or ends, and None for the other")
    if hidden_size > MAX_WIDTH:
        raise ValueError(f"head_input: rows have {hidden_size} values, expected up to {MAX_WIDTH}")
    num_programs = len(input_ids) if places is not None else len(features)
    if num_programs == 0:
        return
    block_h, num_warps = config(hidden_size)
    head_input_kernel[(num_programs,)](
        *(input_ids, weight, scales, features, places, ends, embedded_norm, feature_norm, x, residual),
        *(vocab_size, hidden_size, eps, None if scales is None else scales.stride(0)),
        KEEPS_NORM=keeps_norm,
        BLOCK_H=block_h,
        FORM=form.constexpr,
        num_warps=num_warps,
        enable_fp_fusion=False,
        **dependent("head_input", pdl),
    )
