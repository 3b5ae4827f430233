"""Definition of feed."""

from typing import Any

PREFILL, SCORE, SCORE_WINDOW, DRAFT_FIRST, DRAFT_NEXT, DRAFT_WINDOW = range(6)
HEAD_PREFILL, HEAD_FIRST, HEAD_NEXT = range(6, 9)
RUNNING = 1


def feed(
    kind: int,
    step: int,
    of: Any,
    block_size: int,
    max_q_len: int,
    ring_size: int,
    fed: Any,
    mask_token: int = 0,
) -> None:
    """Fills the batch of one forward pass, sequence after sequence."""
    fed.input_ids.zero_()
    fed.positions.zero_()
    fed.slot_mapping.fill_(-1)
    fed.cu_seqlens_q[0] = 0
    row = 0
    for b in range(of.token_ids.shape[0]):
        base = int(of.committed[b] + of.pending[b])
        room = int(of.max_total_len[b] - of.committed[b])
        runs = int(of.finish_reason[b]) == RUNNING
        if kind in (DRAFT_FIRST, DRAFT_WINDOW, HEAD_FIRST) and runs:
            fed.num_draft_tokens[b] = min(int(of.gamma[b]), room - int(of.pending[b]))
        window_len = int(fed.num_draft_tokens[b])
        if kind in (PREFILL, HEAD_PREFILL):
            start, end = of.chunk[b].tolist()
            count = end - start
        elif kind in (SCORE, SCORE_WINDOW):
            start = int(of.committed[b]) - 1
            count = min(int(of.pending[b]) + 1 + (window_len if kind == SCORE_WINDOW else 0), room)
        elif kind == DRAFT_FIRST:
            start, count = base - 2, 2 if window_len > 0 else 0
        elif kind == DRAFT_WINDOW:
            start = max(base - (max_q_len - fed.logit_rows.shape[1] + 1), int(of.prompt_len[b]) - 1)
            count = base + window_len - 1 - start if window_len > 0 else 0
        elif kind == HEAD_FIRST:
            start = max(base - 1 - max_q_len, int(of.prompt_len[b]) - 1)
            count = base - 1 - start if window_len > 0 else 0
        else:
            start, count = base + step - (2 if kind == HEAD_NEXT else 1), 1 if step < window_len else 0
        if kind not in (PREFILL, HEAD_PREFILL) and not runs:
            count = 0
        count = min(max(count, 0), max_q_len)
        for i in range(count):
            p = start + i
            fed_at = p + 1 if kind in (HEAD_PREFILL, HEAD_FIRST, HEAD_NEXT) else p
            from_window = fed_at >= base and kind in (SCORE_WINDOW, DRAFT_NEXT, HEAD_NEXT)
            if p >= base and kind == DRAFT_WINDOW:
                fed.input_ids[row + i] = mask_token
            else:
                fed.input_ids[row + i] = (
                    of.window[b, fed_at - base] if from_window else of.token_ids[b, fed_at]
                )
            fed.positions[row + i] = p
            fed.slot_mapping[row + i] = int(of.block_table[b, p // block_size]) * block_size + p % block_size
        for i in range(fed.logit_rows.shape[1]):
            place = min(i, count - 1)
            if kind not in (SCORE, SCORE_WINDOW, DRAFT_WINDOW):
                place = count - 1
            elif kind == DRAFT_WINDOW:
                rows = window_len if count > 0 else 0
                place = count - rows + min(i, rows - 1)
            fed.logit_rows[b, i] = min(max(row + place, 0), len(fed.input_ids) - 1)
        row += count
        fed.cu_seqlens_q[b + 1] = row
        fed.context_lens[b] = start + count if count > 0 else 0
        if kind in (SCORE, SCORE_WINDOW):
            fed.num_rows[b] = count
        if kind not in (PREFILL, HEAD_PREFILL, SCORE, SCORE_WINDOW):
            for i in range(fed.sample_positions.shape[1]):
                fed.sample_positions[b, i] = base + step + i
                fed.ring_rows[b, i] = b * ring_size + (base + step + i) % ring_size
