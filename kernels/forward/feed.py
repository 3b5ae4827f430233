"""feed: which tokens a forward pass is fed, read from the state of the sequences on the device.

One ragged batch: of sequence b the count[b] tokens from position start[b] on, packed in order of b.

    kind            start                             count
    PREFILL         chunk[b, 0]                       chunk[b, 1] - chunk[b, 0]
    SCORE           committed - 1                     pending + 1
    SCORE_WINDOW    committed - 1                     pending + num_draft_tokens + 1
    DRAFT_FIRST     committed + pending - 2           2, if the window is not empty
    DRAFT_NEXT      committed + pending + step - 1    1, if step < num_draft_tokens

But for PREFILL, a sequence that does not run (finish_reason != RUNNING) has count 0. Scores stop at
max_total_len: count <= max_total_len - committed. DRAFT_FIRST sets num_draft_tokens = min(gamma,
max_total_len - committed - pending), the length of the window. The token of position p is token_ids[b, p],
and from p = committed + pending on, in SCORE_WINDOW and DRAFT_NEXT, window[b, p - committed - pending].

    committed 5, pending 1, SCORE      -> positions 4 5, whose logits are those of positions 5 6
    committed 5, pending 1, DRAFT_NEXT -> step 2: position 7, the window's token 1; samples position 8

Grid: (B + 1,). Program b writes the rows of sequence b, program B the padding rows behind them.
Shapes: token_ids [B, C]; window [B, G], any strides; chunk [B, 2]; block_table [B, MB]; committed, pending,
max_total_len, gamma, finish_reason [B]; all int32.
Out: input_ids, positions [T] int32, slot_mapping [T] int64 (padding: 0, 0, -1); cu_seqlens_q [B + 1],
context_lens [B] int32 (0 if count is 0); logit_rows [B, L] int32: the batch's row whose logits are row l of
sequence b, its l-th in a score (the last one again behind the last), its last one otherwise; num_rows [B]
int32: count, in a score; num_draft_tokens [B] int32, in DRAFT_FIRST; sample_positions [B] int64: committed +
pending + step, and ring_rows [B] int64: b * ring_size + that % ring_size, in a draft; behind the end of a
short window too these are not the rows of pending tokens.
Requires contiguous tensors (but for window) on one device and the sum of counts <= T: with T = B * max_q_len
it always is, since no count passes max_q_len. Mutates what is listed under Out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..base import library

PREFILL, SCORE, SCORE_WINDOW, DRAFT_FIRST, DRAFT_NEXT = range(5)
KINDS = ("PREFILL", "SCORE", "SCORE_WINDOW", "DRAFT_FIRST", "DRAFT_NEXT")
MAX_SEQUENCES = 1024  # each program adds up the counts of all


@triton.jit(do_not_specialize=["step"])
def feed_kernel(
    token_ids_ptr,  # [B, C] int32
    committed_ptr,  # [B] int32
    pending_ptr,  # [B] int32
    max_total_len_ptr,  # [B] int32
    gamma_ptr,  # [B] int32
    finish_reason_ptr,  # [B] int32
    window_ptr,  # [B, G] int32, strided
    chunk_ptr,  # [B, 2] int32
    block_table_ptr,  # [B, MB] int32
    input_ids_ptr,  # [T] int32
    positions_ptr,  # [T] int32
    slot_mapping_ptr,  # [T] int64
    cu_seqlens_q_ptr,  # [B + 1] int32
    context_lens_ptr,  # [B] int32
    logit_rows_ptr,  # [B, L] int32
    num_rows_ptr,  # [B] int32
    num_draft_tokens_ptr,  # [B] int32
    sample_positions_ptr,  # [B] int64
    ring_rows_ptr,  # [B] int64
    num_sequences,
    num_tokens,
    capacity,
    max_blocks,
    block_size,
    window_stride_b,
    window_stride_g,
    num_logits,
    max_q_len,
    ring_size,
    step,
    KIND: tl.constexpr,  # 0 PREFILL, 1 SCORE, 2 SCORE_WINDOW, 3 DRAFT_FIRST, 4 DRAFT_NEXT
    BLOCK_B: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    own = tl.program_id(0)
    slots = tl.arange(0, BLOCK_B)
    here = slots < num_sequences
    committed = tl.load(committed_ptr + slots, mask=here, other=0)
    pending = tl.load(pending_ptr + slots, mask=here, other=0)
    room = tl.load(max_total_len_ptr + slots, mask=here, other=0) - committed
    runs = tl.load(finish_reason_ptr + slots, mask=here, other=0) == 1
    if KIND == 0:
        start = tl.load(chunk_ptr + 2 * slots, mask=here, other=0)
        count = tl.load(chunk_ptr + 2 * slots + 1, mask=here, other=0) - start
    elif KIND == 1:
        start = committed - 1
        count = tl.where(runs, tl.minimum(pending + 1, room), 0)
    elif KIND == 2:
        start = committed - 1
        window_len = tl.load(num_draft_tokens_ptr + slots, mask=here, other=0)
        count = tl.where(runs, tl.minimum(pending + window_len + 1, room), 0)
    elif KIND == 3:
        start = committed + pending - 2
        window_len = tl.minimum(tl.load(gamma_ptr + slots, mask=here, other=0), room - pending)
        count = tl.where(runs & (window_len > 0), 2, 0)
        tl.store(num_draft_tokens_ptr + slots, window_len, mask=here & runs & (slots == own))
    else:
        start = committed + pending + step - 1
        window_len = tl.load(num_draft_tokens_ptr + slots, mask=here, other=0)
        count = tl.where(runs & (step < window_len), 1, 0)
    count = tl.minimum(tl.maximum(count, 0), max_q_len)
    ends = tl.cumsum(count, 0)

    if own == num_sequences:
        total = tl.sum(count)
        rows = tl.arange(0, BLOCK_T)
        padding = (rows >= total) & (rows < num_tokens)
        tl.store(input_ids_ptr + rows, tl.zeros([BLOCK_T], tl.int32), mask=padding)
        tl.store(positions_ptr + rows, tl.zeros([BLOCK_T], tl.int32), mask=padding)
        tl.store(slot_mapping_ptr + rows, tl.full([BLOCK_T], -1, tl.int64), mask=padding)
        tl.store(cu_seqlens_q_ptr, 0)
        return

    is_own = slots == own
    own_start = tl.sum(tl.where(is_own, start, 0))
    own_count = tl.sum(tl.where(is_own, count, 0))
    own_end = tl.sum(tl.where(is_own, ends, 0))
    own_base = tl.sum(tl.where(is_own, committed + pending, 0))
    own_begin = own_end - own_count
    tl.store(cu_seqlens_q_ptr + own + 1, own_end)
    tl.store(context_lens_ptr + own, tl.where(own_count > 0, own_start + own_count, 0))

    row = tl.arange(0, BLOCK_Q)
    fed = row < own_count
    position = own_start + row
    row_of_tokens = token_ids_ptr + own.to(tl.int64) * capacity
    if (KIND == 2) | (KIND == 4):
        drafted = position >= own_base
        token = tl.load(row_of_tokens + position, mask=fed & (position < own_base), other=0)
        place = own * window_stride_b + (position - own_base) * window_stride_g
        token = tl.where(drafted, tl.load(window_ptr + place, mask=fed & drafted, other=0), token)
    else:
        token = tl.load(row_of_tokens + position, mask=fed, other=0)
    page = tl.load(block_table_ptr + own * max_blocks + position // block_size, mask=fed, other=0)
    slot = page.to(tl.int64) * block_size + position % block_size
    tl.store(input_ids_ptr + own_begin + row, token, mask=fed)
    tl.store(positions_ptr + own_begin + row, position, mask=fed)
    tl.store(slot_mapping_ptr + own_begin + row, slot, mask=fed)

    logit = tl.arange(0, BLOCK_L)
    if (KIND == 1) | (KIND == 2):
        source = own_begin + tl.minimum(logit, own_count - 1)
        tl.store(num_rows_ptr + own, own_count)
    else:
        source = own_end - 1 + logit * 0
    source = tl.maximum(tl.minimum(source, num_tokens - 1), 0)
    tl.store(logit_rows_ptr + own * num_logits + logit, source, mask=logit < num_logits)
    if KIND >= 3:
        sampled = (own_base + step).to(tl.int64)
        tl.store(sample_positions_ptr + own, sampled)
        tl.store(ring_rows_ptr + own, own.to(tl.int64) * ring_size + sampled % ring_size)


@library.on_their_device
def feed(
    kind: int,
    step: int,
    token_ids: torch.Tensor,
    committed: torch.Tensor,
    pending: torch.Tensor,
    max_total_len: torch.Tensor,
    gamma: torch.Tensor,
    finish_reason: torch.Tensor,
    window: torch.Tensor,
    chunk: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    max_q_len: int,
    ring_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    logit_rows: torch.Tensor,
    num_rows: torch.Tensor,
    num_draft_tokens: torch.Tensor,
    sample_positions: torch.Tensor,
    ring_rows: torch.Tensor,
) -> None:
    """Fills the batch of one forward pass."""
    num_sequences, num_tokens = token_ids.shape[0], input_ids.shape[0]
    if not 0 <= kind < len(KINDS):
        raise ValueError(f"feed: kind {kind} is not one of 0 to {len(KINDS) - 1} ({', '.join(KINDS)})")
    if not 1 <= num_sequences <= MAX_SEQUENCES:
        raise ValueError(f"feed: {num_sequences} sequences, expected 1 to {MAX_SEQUENCES}: split the batch")
    if kind != PREFILL and num_tokens < num_sequences * max_q_len:
        raise ValueError(
            f"feed: input_ids has {num_tokens} rows, {num_sequences} sequences of {max_q_len} may need "
            f"{num_sequences * max_q_len}: pass longer buffers"
        )
    if step < 0 or ring_size < 1 or block_size < 1:
        raise ValueError(
            f"feed: step {step}, ring_size {ring_size}, block_size {block_size}: expected >= 0, >= 1 and >= 1"
        )
    if window.dim() != 2 or window.shape[0] != num_sequences or window.dtype != torch.int32:
        raise ValueError(
            f"feed: window is {window.dtype} {list(window.shape)}, expected int32 [{num_sequences}, *]"
        )
    library.check_all(
        "feed",
        token_ids=(token_ids, (num_sequences, None), torch.int32),
        committed=(committed, (num_sequences,), torch.int32),
        pending=(pending, (num_sequences,), torch.int32),
        max_total_len=(max_total_len, (num_sequences,), torch.int32),
        gamma=(gamma, (num_sequences,), torch.int32),
        finish_reason=(finish_reason, (num_sequences,), torch.int32),
        window=(window,),
        chunk=(chunk, (num_sequences, 2), torch.int32),
        block_table=(block_table, (num_sequences, None), torch.int32),
        input_ids=(input_ids, (num_tokens,), torch.int32),
        positions=(positions, (num_tokens,), torch.int32),
        slot_mapping=(slot_mapping, (num_tokens,), torch.int64),
        cu_seqlens_q=(cu_seqlens_q, (num_sequences + 1,), torch.int32),
        context_lens=(context_lens, (num_sequences,), torch.int32),
        logit_rows=(logit_rows, (num_sequences, None), torch.int32),
        num_rows=(num_rows, (num_sequences,), torch.int32),
        num_draft_tokens=(num_draft_tokens, (num_sequences,), torch.int32),
        sample_positions=(sample_positions, (num_sequences,), torch.int64),
        ring_rows=(ring_rows, (num_sequences,), torch.int64),
    )
    num_logits = logit_rows.shape[1]
    feed_kernel[(num_sequences + 1,)](
        token_ids,
        committed,
        pending,
        max_total_len,
        gamma,
        finish_reason,
        window,
        chunk,
        block_table,
        input_ids,
        positions,
        slot_mapping,
        cu_seqlens_q,
        context_lens,
        logit_rows,
        num_rows,
        num_draft_tokens,
        sample_positions,
        ring_rows,
        num_sequences,
        num_tokens,
        token_ids.shape[1],
        block_table.shape[1],
        block_size,
        window.stride(0),
        window.stride(1),
        num_logits,
        max_q_len,
        ring_size,
        step,
        KIND=kind,
        BLOCK_B=triton.next_power_of_2(num_sequences),
        BLOCK_Q=triton.next_power_of_2(max_q_len),
        BLOCK_L=triton.next_power_of_2(num_logits),
        BLOCK_T=triton.next_power_of_2(num_tokens),
    )


library.register(
    "feed(int kind, int step, Tensor token_ids, Tensor committed, Tensor pending, Tensor max_total_len, "
    "Tensor gamma, Tensor finish_reason, Tensor window, Tensor chunk, Tensor block_table, int block_size, "
    "int max_q_len, int ring_size, Tensor(a!) input_ids, Tensor(b!) positions, Tensor(c!) slot_mapping, "
    "Tensor(d!) cu_seqlens_q, Tensor(e!) context_lens, Tensor(f!) logit_rows, Tensor(g!) num_rows, "
    "Tensor(h!) num_draft_tokens, Tensor(i!) sample_positions, Tensor(j!) ring_rows) -> ()",
    feed,
)
