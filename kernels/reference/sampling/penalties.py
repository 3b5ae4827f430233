"""min_tokens, logit bias and penalties, row by row."""

from __future__ import annotations

import torch

RUNNING = 1
LIMITS = torch.finfo(torch.float32)


def penalties(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    window: torch.Tensor,
    committed: torch.Tensor,
    pending: torch.Tensor,
    finish_reason: torch.Tensor,
    prompt_len: torch.Tensor,
    num_rows: torch.Tensor | None,
    step: int,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    min_tokens: torch.Tensor,
    masked_ids: torch.Tensor,
    bias_ids: torch.Tensor,
    bias: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    """Shapes and meaning as in kernels/sampling/penalties.py."""
    vocab, rows = logits.shape[1], len(logits) // len(token_ids)
    for b in (finish_reason == RUNNING).nonzero()[:, 0].tolist():
        known = int(committed[b] + pending[b])
        tokens = torch.cat([token_ids[b, :known], window[b]])
        for r in range(rows if num_rows is None else min(rows, int(num_rows[b]))):
            length = known + step if step >= 0 else int(committed[b]) + r
            row = logits[b * rows + r]
            bad = ~(row < torch.inf)
            x = torch.where(bad, 0.0, row.float())
            if length - int(prompt_len[b]) < int(min_tokens[b]):
                ids = masked_ids[b]
                x[ids[(ids >= 0) & (ids < vocab)].long()] = -torch.inf
            for token, amount in zip(bias_ids[b].tolist(), bias[b], strict=True):
                if 0 <= token < vocab:
                    x[token] += amount
            if (float(repetition[b]), float(frequency[b]), float(presence[b])) != (1.0, 0.0, 0.0):
                prefix = tokens[:length].long()
                prefix, answer = prefix[prefix < vocab], tokens[int(prompt_len[b]) : length].long()
                times = torch.bincount(answer[answer < vocab], minlength=vocab)
                seen = torch.bincount(prefix, minlength=vocab) > 0
                y = torch.where(x > 0, x / repetition[b], x * repetition[b])
                y = y - frequency[b] * times.float()
                y = y - torch.where(times > 0, presence[b], 0.0)
                x = torch.where(seen & (x > -torch.inf), y.clamp(LIMITS.min, LIMITS.max), x)
            logits[b * rows + r] = torch.where(bad, row, x.to(row.dtype))
