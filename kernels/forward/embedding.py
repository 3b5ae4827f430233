"""embedding: rows of the embedding table, widened into the residual stream.

    out[t, :] = weight[clamp(input_ids[t], 0, V - 1), :]

Ids out of range read the nearest row: a draft with fewer rows than the target has none for some of its ids,
and a placeholder (-1) of a row that was flagged must not be an address.

Grid: (T, ceil(H / BLOCK_H)). A program copies BLOCK_H columns of one row.
Shapes: input_ids [T] int32; weight [V, H] fp32, fp16 or bf16; out [T, H] fp32.
Requires contiguous tensors on one device. Mutates out.
"""

from __future__ import annotations

from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from ..base.library import operator

BLOCK_H = 1024


@triton.jit
def embedding_kernel(
    input_ids_ptr,  # [T] int32
    weight_ptr,  # [V, H]
    out_ptr,  # [T, H] fp32
    vocab_size,
    hidden_size,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    token = tl.load(input_ids_ptr + row)
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1).to(tl.int64)
    inside = columns < hidden_size
    values = tl.load(weight_ptr + token * hidden_size + columns, mask=inside, other=0.0)
    tl.store(out_ptr + row * hidden_size + columns, values.to(tl.float32), mask=inside)


@operator
def embedding(
    input_ids: Annotated[Tensor, "int32 [T]"],
    weight: Annotated[Tensor, "float [V, H]"],
    out: Annotated[Tensor, "fp32 [T, H] out"],
) -> None:
    """out = weight[input_ids], in fp32."""
    num_tokens, (vocab_size, hidden_size) = input_ids.shape[0], weight.shape
    if num_tokens == 0:
        return
    grid = (num_tokens, triton.cdiv(hidden_size, BLOCK_H))
    embedding_kernel[grid](input_ids, weight, out, vocab_size, hidden_size, BLOCK_H=BLOCK_H)
