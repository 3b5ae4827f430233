"""min_tokens, logit bias and penalties, in place on rows of logits; fp32, in
pearl_rt/reference/processors.py's order.

    masked ids  x = -inf                             while the row has fewer than min_tokens tokens before it
    bias ids    x = x + bias
    in prompt or answer   x = x / repetition if x > 0, else x * repetition
    in the answer         x = x - frequency * times - presence

Row r of slot b, of L rows, is for position committed + r (target: step -1), or committed + pending + step (a
draft's, L = 1); it sees all tokens before its position: token_ids[b, p] for p < committed + pending, then
window[b, p - committed - pending]. So a row inside a window sees the candidates before it. NaN and +inf stay,
so that such a row is still found; -inf stays; other results are kept within fp32. Rows of slots that do not
run, and rows past num_rows (target), are left alone. Two launches, grids from shapes only:

    count_kernel  (slots, tiles of C)  counts[b, token] of what all rows of a slot share: times in the answer,
                                       and one bit for the prompt
    apply_kernel  (slots * L, tiles of V)  one tile of a row; candidates before the row are compared with it

logits [B * L, V] fp32, fp16 or bf16, rows at any stride; token_ids [B, C], window [B, G] at any strides,
committed, pending, finish_reason, prompt_len, num_rows (or None), min_tokens [B], masked_ids [B, NM],
bias_ids [B, NB] int32 (-1 ends a list); bias [B, NB], repetition, frequency, presence [B] fp32. Mutates
logits and the workspace. Bound by memory: reads and writes the rows, and counts once.

    repetition [2], prompt [3], answer [1], logits [4, 4, -4, -4]  ->  [4, 2, -4, -8]
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pearl_rt import state

from ..base import interpreter  # noqa: F401
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from ..base.workspace import Part, carve, num_bytes
from .noise import EXACT
from .sample import INFINITY, row_offset

RUNNING = tl.constexpr(state.RUNNING)
IN_PROMPT = tl.constexpr(1 << 30)  # the bit of a count
MOST = tl.constexpr(3.4028234663852886e38)
TOKENS = 256  # of a counting program
TARGET_ROWS = -1  # as `step`


class Before(NamedTuple):
    """The tokens before a row, and the rows that are there."""

    token_ids: Annotated[Tensor, "int32 [B, C]"]
    window: Annotated[Tensor, "int32 [B, G] strided"]
    committed: Annotated[Tensor, "int32 [B]"]
    pending: Annotated[Tensor, "int32 [B]"]
    finish_reason: Annotated[Tensor, "int32 [B]"]
    prompt_len: Annotated[Tensor, "int32 [B]"]
    num_rows: Annotated[Tensor | None, "int32 [B]"]


class Parameters(NamedTuple):
    """Those of each slot's request."""

    repetition: Annotated[Tensor, "fp32 [B]"]
    frequency: Annotated[Tensor, "fp32 [B]"]
    presence: Annotated[Tensor, "fp32 [B]"]
    min_tokens: Annotated[Tensor, "int32 [B]"]
    masked_ids: Annotated[Tensor, "int32 [B, NM]"]  # -1 ends a list
    bias_ids: Annotated[Tensor, "int32 [B, NB]"]  # likewise
    bias: Annotated[Tensor, "fp32 [B, NB]"]


@triton.jit
def is_penalised(asked, b):
    """Whether a slot's request has any penalty on. asked: Parameters."""
    off = (tl.load(asked.repetition + b) == 1.0) & (tl.load(asked.frequency + b) == 0.0)
    return (off & (tl.load(asked.presence + b) == 0.0)) == 0


@triton.jit
def length_of(list_ptr, most, MOST_PADDED: tl.constexpr):
    """Of a list of ids that -1 ends."""
    place = tl.arange(0, MOST_PADDED)
    ids = tl.load(list_ptr + place, mask=place < most, other=-1)
    return tl.sum((ids >= 0).to(tl.int32), axis=0)


@triton.jit(do_not_specialize=["window_stride_b", "window_stride_g", "step"])  # one binary for all windows
def count_kernel(
    before,  # Before
    asked,  # Parameters
    counts_ptr,  # [B, V] int32, zeros; mutated
    window_stride_b,
    window_stride_g,
    C,
    V,
    step,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    b = tl.program_id(0)
    if tl.load(before.finish_reason + b) != RUNNING:
        return
    if is_penalised(asked, b) == 0:
        return
    committed = tl.load(before.committed + b)
    known = committed + tl.load(before.pending + b)
    length = tl.where(step >= 0, known + step, committed)
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    if tl.program_id(1) * TILE >= length:
        return
    fed = (place < length) & (place < C)
    old = tl.load(before.token_ids + row_offset(b, C) + place, mask=fed & (place < known), other=-1)
    drafted = fed & (place >= known)
    new = before.window + b * window_stride_b + (place - known) * window_stride_g
    token = tl.where(drafted, tl.load(new, mask=drafted, other=-1), old)
    counted = fed & (token >= 0) & (token < V)
    cell = counts_ptr + row_offset(b, V) + token
    answer = place >= tl.load(before.prompt_len + b)
    tl.atomic_add(cell, 1, mask=counted & answer)
    tl.atomic_or(cell, IN_PROMPT, mask=counted & (answer == 0))


@triton.jit(do_not_specialize=["window_stride_b", "window_stride_g", "L", "step"])
def apply_kernel(
    logits_ptr,  # [B * L, V], rows at `stride`; mutated
    before,  # Before
    asked,  # Parameters
    counts_ptr,  # [B, V] int32
    stride,
    window_stride_b,
    window_stride_g,
    C,
    V,
    L,
    NM,
    NB,
    step,
    NMP: tl.constexpr,  # powers of two, >= NM and NB
    NBP: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    b = tl.program_id(0) // L
    r = tl.program_id(0) % L
    if tl.load(before.finish_reason + b) != RUNNING:
        return
    rows = L
    if before.num_rows is not None:
        rows = tl.load(before.num_rows + b)
    if r >= rows:
        return
    penalised = is_penalised(asked, b)
    committed = tl.load(before.committed + b)
    known = committed + tl.load(before.pending + b)
    shared = tl.where(step >= 0, known + step, committed)  # tokens that count_kernel has counted
    generated = shared + r - tl.load(before.prompt_len + b)
    early = generated < tl.load(asked.min_tokens + b)
    num_masked = tl.where(early, length_of(asked.masked_ids + b * NM, NM, NMP), 0)
    num_biased = length_of(asked.bias_ids + b * NB, NB, NBP)
    if (penalised | (num_masked > 0) | (num_biased > 0)) == 0:
        return

    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = column < V
    place = logits_ptr + row_offset(tl.program_id(0), stride) + column
    x = tl.load(place, mask=live, other=0.0).to(tl.float32)
    y = x
    for i in range(num_masked):
        y = tl.where(column == tl.load(asked.masked_ids + b * NM + i), -INFINITY, y)
    for i in range(num_biased):
        y = tl.where(column == tl.load(asked.bias_ids + b * NB + i), y + tl.load(asked.bias + b * NB + i), y)
    if penalised:
        cell = tl.load(counts_ptr + row_offset(b, V) + column, mask=live, other=0)
        times = cell & (IN_PROMPT - 1)
        for i in range(r):  # candidates before the row; r is 0 for a draft's step
            at = committed + i
            if at < known:
                token = tl.load(before.token_ids + row_offset(b, C) + at)
            else:
                token = tl.load(before.window + b * window_stride_b + (at - known) * window_stride_g)
            times += (column == token).to(tl.int32)
        repetition = tl.load(asked.repetition + b)
        divided = tl.div_rn(y, tl.full([TILE], 1.0, tl.float32) * repetition)
        z = tl.where(y > 0.0, divided, y * repetition)
        z = z - tl.load(asked.frequency + b) * times.to(tl.float32)
        z = z - tl.where(times > 0, tl.load(asked.presence + b), 0.0)
        z = tl.minimum(tl.maximum(z, -MOST), MOST)
        y = tl.where(((times > 0) | (cell >= IN_PROMPT)) & (y > -INFINITY), z, y)
    tl.store(place, tl.where(x < INFINITY, y, x), mask=live)


def _tile(vocab: int) -> int:
    return min(1024, max(16, triton.next_power_of_2(vocab)))


def _parts(slots: int, vocab: int) -> list[Part]:
    return [((slots, vocab), torch.int32)]


def workspace_size(slots: int, vocab: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(slots, vocab))


@operator
def penalties(
    logits: Annotated[Tensor, "float [R, V] rows out"],
    before: Before,
    step: int,
    asked: Parameters,
    workspace: Annotated[Tensor, "out"],
    pdl: bool = False,
) -> None:
    """Rows as requests transform them, in place; see above. step: TARGET_ROWS, or the draft's. pdl:
    kernels/base/dependent.py.
    """
    (rows, vocab), (slots, capacity) = logits.shape, before.token_ids.shape
    if slots < 1 or rows % slots or (step != TARGET_ROWS and rows != slots):
        raise ValueError(f"penalties: {rows} rows of {slots} slots at step {step}, expected as many of each")
    if step < TARGET_ROWS:
        raise ValueError(
            f"penalties: step is {step}, expected 0 or more, or {TARGET_ROWS} for a target's rows"
        )
    (_, masked), (_, biased) = asked.masked_ids.shape, asked.bias_ids.shape
    if masked == 0 or biased == 0:
        raise ValueError("penalties: masked_ids or bias_ids has no column: give each one of -1 at least")
    (counts,) = carve("penalties", workspace, _parts(slots, vocab))
    if rows == 0:
        return
    counts.zero_()
    strides, options = before.window.stride(), {**dependent("penalties", pdl), **EXACT}
    grid = (slots, triton.cdiv(capacity, TOKENS))
    count_kernel[grid](before, asked, counts, *strides, capacity, vocab, step, TILE=TOKENS, **options)
    tile = _tile(vocab)
    apply_kernel[(rows, triton.cdiv(vocab, tile))](
        *(logits, before, asked, counts, logits.stride(0), *strides),
        *(capacity, vocab, rows // slots, masked, biased, step),
        NMP=triton.next_power_of_2(masked),
        NBP=triton.next_power_of_2(biased),
        TILE=tile,
        **options,
    )
