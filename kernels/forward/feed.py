"""feed: which tokens a forward pass is fed, read from the state of the sequences on the device.

One ragged batch: of sequence b the count[b] tokens from position start[b] on, packed in order of b.

    kind            start                             count
    PREFILL         chunk[b, 0]                       chunk[b, 1] - chunk[b, 0]
    SCORE           committed - 1                     pending + 1
    SCORE_WINDOW    committed - 1                     pending + num_draft_tokens + 1
    DRAFT_FIRST     committed + pending - 2           2, if the window is not empty
    DRAFT_NEXT      committed + pending + step - 1    1, if step < num_draft_tokens
    DRAFT_WINDOW    committed + pending - TEXT        TEXT + num_draft_tokens - 1, if the window is not empty
    HEAD_PREFILL    chunk[b, 0]                       chunk[b, 1] - chunk[b, 0]
    HEAD_FIRST      committed + pending - 1 - TEXT    TEXT, if the window is not empty
    HEAD_NEXT       committed + pending + step - 2    1, if step < num_draft_tokens

But for a prefill, a sequence that does not run (finish_reason != RUNNING) has count 0. Scores stop at
max_total_len: count <= max_total_len - committed. DRAFT_FIRST, DRAFT_WINDOW and HEAD_FIRST set
num_draft_tokens = min(gamma, max_total_len - committed - pending), the length of the window. TEXT is
max_q_len - L + 1 tokens, but none before the last of the prompt: what is before it a prefill has fed. The
token of position p is token_ids[b, p], and from p = committed + pending on, in SCORE_WINDOW, DRAFT_NEXT and
HEAD_NEXT, window[b, p - committed - pending]; in DRAFT_WINDOW mask_token. A row of a head (HEAD_*) is fed the
token of the position behind its own.

    committed 5, pending 1, SCORE        -> positions 4 5, whose logits are those of positions 5 6
    committed 5, pending 1, DRAFT_NEXT   -> step 2: position 7, the window's token 1; samples position 8
    committed 5, pending 1, DRAFT_WINDOW -> 2 of the text, window of 3: positions 4 5 and masks at 6 7; the
                                            logits of 5 6 7, which are those of positions 6 7 8
    committed 6, pending 0, HEAD_FIRST   -> max_q_len 3: prompt of 1: positions 2 3 4, fed tokens 3 4 5

Grid: (B + 1,). Program b writes the rows of sequence b, program B the padding rows behind them.
Shapes: token_ids [B, C]; window [B, G], any strides; chunk [B, 2]; block_table [B, MB]; committed, pending,
max_total_len, gamma, finish_reason, prompt_len [B]; all int32.
Out: input_ids, positions [T] int32, slot_mapping [T] int64 (padding: 0, 0, -1); cu_seqlens_q [B + 1],
context_lens [B] int32 (0 if count is 0); logit_rows [B, L] int32: the batch's row whose logits are row l of
sequence b, its l-th in a score, and in DRAFT_WINDOW of its last num_draft_tokens (the last one again behind
the last), its last one otherwise; num_rows [B] int32: count, in a score; num_draft_tokens [B] int32, in
the three that set it; sample_positions [B, S] int64: committed + pending + step + s, and ring_rows
[B, S] int64: b * ring_size + that % ring_size, in a draft; behind the end of a short window too these are not
the rows of pending tokens.
Requires contiguous tensors (but for window) on one device and the sum of counts <= T: with T = B * max_q_len
it always is, since no count passes max_q_len. Mutates what is listed under Out.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.dependent import await_previous, dependent
from ..base.library import operator

PREFILL, SCORE, SCORE_WINDOW, DRAFT_FIRST, DRAFT_NEXT, DRAFT_WINDOW = range(6)
HEAD_PREFILL, HEAD_FIRST, HEAD_NEXT = range(6, 9)
KINDS = (
    *("PREFILL", "SCORE", "SCORE_WINDOW", "DRAFT_FIRST", "DRAFT_NEXT", "DRAFT_WINDOW"),
    *("HEAD_PREFILL", "HEAD_FIRST", "HEAD_NEXT"),
)
PREFILLS = (PREFILL, HEAD_PREFILL)
MAX_SEQUENCES = 1024  # each program adds up the counts of all


class Sequences(NamedTuple):
    """What is known of the sequences."""

    token_ids: Annotated[Tensor, "int32 [B, C]"]
    committed: Annotated[Tensor, "int32 [B]"]
    pending: Annotated[Tensor, "int32 [B]"]
    max_total_len: Annotated[Tensor, "int32 [B]"]
    gamma: Annotated[Tensor, "int32 [B]"]
    finish_reason: Annotated[Tensor, "int32 [B]"]
    prompt_len: Annotated[Tensor, "int32 [B]"]
    window: Annotated[Tensor, "int32 [B, G] strided"]
    chunk: Annotated[Tensor, "int32 [B, 2]"]
    block_table: Annotated[Tensor, "int32 [B, MB]"]


class Fed(NamedTuple):
    """The batch, and what follows from it."""

    input_ids: Annotated[Tensor, "int32 [T] out"]
    positions: Annotated[Tensor, "int32 [T] out"]
    slot_mapping: Annotated[Tensor, "int64 [T] out"]
    cu_seqlens_q: Annotated[Tensor, "int32 [B + 1] out"]
    context_lens: Annotated[Tensor, "int32 [B] out"]
    logit_rows: Annotated[Tensor, "int32 [B, L] out"]
    num_rows: Annotated[Tensor, "int32 [B] out"]
    num_draft_tokens: Annotated[Tensor, "int32 [B] out"]
    sample_positions: Annotated[Tensor, "int64 [B, S] out"]
    ring_rows: Annotated[Tensor, "int64 [B, S] out"]


@triton.jit(
    do_not_specialize=[
        *("num_tokens", "window_stride_b", "window_stride_g", "num_logits", "num_samples", "max_q_len"),
        *("ring_size", "step", "kind", "mask_token"),
    ]
)  # one binary for all kinds and windows
def feed_kernel(
    of,  # Sequences
    fed,  # Fed, out
    num_sequences,
    num_tokens,
    capacity,
    max_blocks,
    block_size,
    window_stride_b,
    window_stride_g,
    num_logits,
    num_samples,
    max_q_len,
    ring_size,
    step,
    kind,  # index in KINDS
    mask_token,
    BLOCK_B: tl.constexpr,  # power of two, >= num_sequences
    BLOCK: tl.constexpr,  # rows at a time
    PDL: tl.constexpr,
):
    await_previous(PDL)
    own = tl.program_id(0)
    slots = tl.arange(0, BLOCK_B)
    here = slots < num_sequences
    committed = tl.load(of.committed + slots, mask=here, other=0)
    pending = tl.load(of.pending + slots, mask=here, other=0)
    room = tl.load(of.max_total_len + slots, mask=here, other=0) - committed
    runs = tl.load(of.finish_reason + slots, mask=here, other=0) == 1
    is_prefill, is_score = (kind == 0) | (kind == 6), (kind == 1) | (kind == 2)
    is_draft = (kind >= 3) & (kind != 6)
    has_masks, feeds_head = kind == 5, kind == 7
    ahead = tl.where(kind >= 6, 1, 0)  # of its position, a row's token
    begins = (kind == 3) | has_masks | feeds_head
    begin = tl.load(of.chunk + 2 * slots, mask=here & is_prefill, other=0)
    end = tl.load(of.chunk + 2 * slots + 1, mask=here & is_prefill, other=0)
    gamma = tl.load(of.gamma + slots, mask=here & begins, other=0)
    prompt_len = tl.load(of.prompt_len + slots, mask=here & (has_masks | feeds_head), other=0)
    has_window = (kind == 2) | (kind == 4) | (kind == 8)
    known_len = tl.load(fed.num_draft_tokens + slots, mask=here & has_window, other=0)
    window_len = tl.where(begins, tl.minimum(gamma, room - pending), known_len)
    tl.store(fed.num_draft_tokens + slots, window_len, mask=here & runs & (slots == own) & begins)
    scored = tl.minimum(pending + window_len + 1, room)  # window_len is 0 in SCORE
    base = committed + pending
    first_text = tl.maximum(base - ahead - (max_q_len - num_logits + 1), prompt_len - 1)
    text_len = tl.where(has_masks | feeds_head, base - ahead - first_text, 2)
    drafted = tl.where(begins, text_len + tl.where(has_masks, window_len - 1, 0), 1)
    drafted = tl.where(step < window_len, drafted, 0)
    start = committed - 1
    start = tl.where(is_draft, base - ahead + tl.where(begins, -text_len, step - 1), start)
    start = tl.where(is_prefill, begin, start)
    count = tl.where(runs, tl.where(is_draft, drafted, scored), 0)
    count = tl.where(is_prefill, end - begin, count)
    count = tl.minimum(tl.maximum(count, 0), max_q_len)
    ends = tl.cumsum(count, 0)

    if own == num_sequences:
        total = tl.sum(count)
        for first in range(total, num_tokens, BLOCK):
            rows = first + tl.arange(0, BLOCK)
            padding = rows < num_tokens
            tl.store(fed.input_ids + rows, tl.zeros([BLOCK], tl.int32), mask=padding)
            tl.store(fed.positions + rows, tl.zeros([BLOCK], tl.int32), mask=padding)
            tl.store(fed.slot_mapping + rows, tl.full([BLOCK], -1, tl.int64), mask=padding)
        tl.store(fed.cu_seqlens_q, 0)
        return

    is_own = slots == own
    own_start = tl.sum(tl.where(is_own, start, 0))
    own_count = tl.sum(tl.where(is_own, count, 0))
    own_end = tl.sum(tl.where(is_own, ends, 0))
    own_base = tl.sum(tl.where(is_own, base, 0))
    own_window = tl.sum(tl.where(is_own & (count > 0), window_len, 0))
    own_begin = own_end - own_count
    tl.store(fed.cu_seqlens_q + own + 1, own_end)
    tl.store(fed.context_lens + own, tl.where(own_count > 0, own_start + own_count, 0))

    row_of_tokens = of.token_ids + own.to(tl.int64) * capacity
    for first in range(0, own_count, BLOCK):
        row = first + tl.arange(0, BLOCK)
        is_fed = row < own_count
        position = own_start + row
        place = position + ahead - own_base  # of its token in the window
        is_behind = place >= 0
        is_drafted, is_mask = has_window & is_behind, has_masks & is_behind
        in_text = is_fed & (is_drafted == 0) & (is_mask == 0)
        token = tl.load(row_of_tokens + position + ahead, mask=in_text, other=0)
        token = tl.where(is_mask, mask_token, token)
        drafted_at = of.window + own * window_stride_b + place * window_stride_g
        token = tl.where(is_drafted, tl.load(drafted_at, mask=is_fed & is_drafted, other=0), token)
        page = tl.load(of.block_table + own * max_blocks + position // block_size, mask=is_fed, other=0)
        slot = page.to(tl.int64) * block_size + position % block_size
        tl.store(fed.input_ids + own_begin + row, token, mask=is_fed)
        tl.store(fed.positions + own_begin + row, position, mask=is_fed)
        tl.store(fed.slot_mapping + own_begin + row, slot, mask=is_fed)

    tl.store(fed.num_rows + own, own_count, mask=is_score)
    for first in range(0, num_logits, BLOCK):
        logit = first + tl.arange(0, BLOCK)
        source = tl.where(is_score, own_begin + tl.minimum(logit, own_count - 1), own_end - 1)
        in_window = own_end - own_window + tl.minimum(logit, own_window - 1)
        source = tl.where(has_masks, in_window, source)
        source = tl.maximum(tl.minimum(source, num_tokens - 1), 0)
        tl.store(fed.logit_rows + own * num_logits + logit, source, mask=logit < num_logits)
    for first in range(0, num_samples, BLOCK):
        sample = first + tl.arange(0, BLOCK)
        is_sampled = is_draft & (sample < num_samples)
        sampled = (own_base + step + sample).to(tl.int64)
        ring_row = own.to(tl.int64) * ring_size + sampled % ring_size
        tl.store(fed.sample_positions + own * num_samples + sample, sampled, mask=is_sampled)
        tl.store(fed.ring_rows + own * num_samples + sample, ring_row, mask=is_sampled)


@operator
def feed(
    kind: int,
    step: int,
    of: Sequences,
    block_size: int,
    max_q_len: int,
    ring_size: int,
    fed: Fed,
    mask_token: int = 0,
    pdl: bool = False,
) -> None:
    """Fills the batch of one forward pass. pdl: see kernels/base/dependent.py."""
    (num_sequences, capacity), num_tokens = of.token_ids.shape, len(fed.input_ids)
    if not 0 <= kind < len(KINDS):
        raise ValueError(f"feed: kind {kind} is not one of 0 to {len(KINDS) - 1} ({', '.join(KINDS)})")
    if not 1 <= num_sequences <= MAX_SEQUENCES:
        raise ValueError(f"feed: {num_sequences} sequences, expected 1 to {MAX_SEQUENCES}: split the batch")
    if kind not in PREFILLS and num_tokens < num_sequences * max_q_len:
        raise ValueError(
            f"feed: input_ids has {num_tokens} rows, {num_sequences} sequences of {max_q_len} may need "
            f"{num_sequences * max_q_len}: pass longer buffers"
        )
    if step < 0 or ring_size < 1 or block_size < 1:
        raise ValueError(
            f"feed: step {step}, ring_size {ring_size}, block_size {block_size}: expected >= 0, >= 1 and >= 1"
        )
    num_logits, num_samples = fed.logit_rows.shape[1], fed.sample_positions.shape[1]
    if kind == DRAFT_WINDOW and not num_logits == num_samples <= max_q_len:
        raise ValueError(
            f"feed: {num_logits} logit rows and {num_samples} sample positions of a window, max_q_len "
            f"{max_q_len}: expected as many of both, and no more than rows"
        )
    feed_kernel[(num_sequences + 1,)](
        *(of, fed, num_sequences, num_tokens, capacity, of.block_table.shape[1], block_size),
        *(*of.window.stride(), num_logits, num_samples, max_q_len, ring_size, step, kind, mask_token),
        BLOCK_B=triton.next_power_of_2(num_sequences),
        BLOCK=128,
        **dependent("feed", pdl),
    )
