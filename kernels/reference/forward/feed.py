"""Definition of feed."""

import torch

PREFILL, SCORE, SCORE_WINDOW, DRAFT_FIRST, DRAFT_NEXT = range(5)
RUNNING = 1


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
    """Fills the batch of one forward pass, sequence after sequence."""
    input_ids.zero_()
    positions.zero_()
    slot_mapping.fill_(-1)
    cu_seqlens_q[0] = 0
    row = 0
    for b in range(token_ids.shape[0]):
        base = int(committed[b] + pending[b])
        room = int(max_total_len[b] - committed[b])
        runs = int(finish_reason[b]) == RUNNING
        if kind == DRAFT_FIRST and runs:
            num_draft_tokens[b] = min(int(gamma[b]), room - int(pending[b]))
        window_len = int(num_draft_tokens[b])
        if kind == PREFILL:
            start, end = chunk[b].tolist()
            count = end - start
        elif kind in (SCORE, SCORE_WINDOW):
            start = int(committed[b]) - 1
            count = min(int(pending[b]) + 1 + (window_len if kind == SCORE_WINDOW else 0), room)
        elif kind == DRAFT_FIRST:
            start, count = base - 2, 2 if window_len > 0 else 0
        else:
            start, count = base + step - 1, 1 if step < window_len else 0
        if kind != PREFILL and not runs:
            count = 0
        count = min(max(count, 0), max_q_len)
        for i in range(count):
            p = start + i
            from_window = p >= base and kind in (SCORE_WINDOW, DRAFT_NEXT)
            input_ids[row + i] = window[b, p - base] if from_window else token_ids[b, p]
            positions[row + i] = p
            slot_mapping[row + i] = int(block_table[b, p // block_size]) * block_size + p % block_size
        for i in range(logit_rows.shape[1]):
            last = kind in (PREFILL, DRAFT_FIRST, DRAFT_NEXT) or i >= count
            logit_rows[b, i] = min(max(row + (count - 1 if last else i), 0), len(input_ids) - 1)
        row += count
        cu_seqlens_q[b + 1] = row
        context_lens[b] = start + count if count > 0 else 0
        if kind in (SCORE, SCORE_WINDOW):
            num_rows[b] = count
        if kind in (DRAFT_FIRST, DRAFT_NEXT):
            sample_positions[b] = base + step
            ring_rows[b] = b * ring_size + (base + step) % ring_size
