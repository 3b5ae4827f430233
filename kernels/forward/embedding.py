"""embedding: rows of the embedding table, widened into the residual stream.

    out[t, :] = weight[clamp(input_ids[t], 0, V - 1), :]

For the layer that reads the residual first: scaled = out * next_norm and the sums of squares, as linear's.
Ids out of range read the nearest row: a draft with fewer rows than the target has none for some of its ids,
and a placeholder (-1) of a row that was flagged must not be an address. With scales the table is codes of 8
or 4 bits (kernels/forward/weight_tile.py); their values are not rounded to the dtype of the norm.

Grid: (T, ceil(H / BLOCK_H)). A program copies BLOCK_H columns of one row.
Shapes: input_ids [T] int32; weight [V, H] fp32, fp16 or bf16, or codes; out [T, H] fp32; next_norm [H] and
scaled [T, H] alike; next_squares [T, num_parts(H)] fp32.
Requires contiguous tensors on one device. Mutates out, scaled, next_squares.
"""

from __future__ import annotations

from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import check
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from .linear import OPTIONS, num_parts, part_width
from .weight_tile import form_of, load_coded_row

BLOCK_H = 1024


@triton.jit
def embedding_kernel(
    input_ids_ptr,  # [T] int32
    weight_ptr,  # [V, H], or codes
    scales_ptr,  # [units * words, V] int32, or None
    out_ptr,  # [T, H] fp32
    norm_ptr,  # [H] or None: the next two are not written
    scaled_ptr,  # [T, H]
    next_squares_ptr,  # [T, next_parts] fp32
    vocab_size,
    hidden_size,
    next_parts,
    scales_stride,  # or None
    BLOCK_H: tl.constexpr,
    WIDTH: tl.constexpr,  # of a part
    FORM: tl.constexpr,  # of the table: see WeightForm
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    token = tl.load(input_ids_ptr + row)
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1).to(tl.int64)
    inside = columns < hidden_size
    if FORM is None:
        values = tl.load(weight_ptr + token * hidden_size + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        values = load_coded_row(weight_ptr, scales_ptr, scales_stride, token, columns, hidden_size, FORM)
    tl.store(out_ptr + row * hidden_size + columns, values, mask=inside)
    if norm_ptr is not None:
        scaled = values * tl.load(norm_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        place = scaled_ptr + row * hidden_size + columns
        tl.store(place, scaled.to(scaled_ptr.dtype.element_ty), mask=inside)
        squares = tl.sum(tl.reshape(values * values, (BLOCK_H // WIDTH, WIDTH)), 1)
        part = tl.program_id(1) * (BLOCK_H // WIDTH) + tl.arange(0, BLOCK_H // WIDTH)
        tl.store(next_squares_ptr + row * next_parts + part, squares, mask=part < next_parts)


@operator
def embedding(
    input_ids: Annotated[Tensor, "int32 [T]"],
    weight: Annotated[Tensor, "float|int8|uint8 [V, B]"],
    out: Annotated[Tensor, "fp32 [T, H] out"],
    next_norm: Annotated[Tensor | None, "float [H]"] = None,
    scaled: Annotated[Tensor | None, "next_norm [T, H] out"] = None,
    next_squares: Annotated[Tensor | None, "fp32 [T, Q] out"] = None,
    pdl: bool = False,
    scales: Annotated[Tensor | None, "int32 [W, V] strided"] = None,
    group: int = 32,
) -> None:
    """out = weight[input_ids], in fp32. next_norm: [H]; scaled: [T, H] as next_norm; next_squares: fp32
    [T, num_parts(H)], the last two overwritten (see linear): all three or none. pdl: see
    kernels/base/dependent.py. scales, group: of a table of codes."""
    (num_tokens, hidden_size), vocab_size = out.shape, weight.shape[0]
    form = form_of("embedding", weight, scales, group, hidden_size)
    if len({tensor is None for tensor in (next_norm, scaled, next_squares)}) > 1:
        raise ValueError("embedding: pass all of next_norm, scaled and next_squares, or none of them")
    if next_squares is not None:
        check("embedding", "next_squares", next_squares, (num_tokens, num_parts(hidden_size)))
    if num_tokens == 0:
        return
    grid = (num_tokens, triton.cdiv(hidden_size, BLOCK_H))
    embedding_kernel[grid](
        *(input_ids, weight, scales, out, next_norm, scaled, next_squares),
        *(vocab_size, hidden_size, num_parts(hidden_size), None if scales is None else scales.stride(0)),
        BLOCK_H=BLOCK_H,
        WIDTH=part_width(hidden_size),
        FORM=form.constexpr,
        **dependent("embedding", pdl),
        **OPTIONS,
    )
