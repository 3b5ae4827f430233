"""min_tokens, logit bias and penalties, row by row, as pearl_rt/reference/processors.py defines them."""

from __future__ import annotations

from typing import Any

import torch

from pearl_rt.reference.processors import Transform

from .sample import filtered

RUNNING = 1


def penalties(logits: torch.Tensor, before: Any, step: int, asked: Any, workspace: torch.Tensor) -> None:
    """Shapes and meaning as in kernels/sampling/penalties.py; but a row that is not usable stays as it is."""
    slots = len(before.token_ids)
    rows = filtered(logits, None).reshape(slots, -1, logits.shape[1])
    out = logits.view(rows.shape)
    for b in (before.finish_reason == RUNNING).nonzero()[:, 0].tolist():
        committed, known = int(before.committed[b]), int(before.committed[b] + before.pending[b])
        tokens = [*before.token_ids[b, :known].tolist(), *before.window[b].tolist()]
        biased = zip(asked.bias_ids[b].tolist(), asked.bias[b].tolist(), strict=True)
        transform = Transform(
            repetition_penalty=float(asked.repetition[b]),
            frequency_penalty=float(asked.frequency[b]),
            presence_penalty=float(asked.presence[b]),
            logit_bias=[(token, amount) for token, amount in biased if token >= 0],
            min_tokens=int(asked.min_tokens[b]),
            masked_ids=[token for token in asked.masked_ids[b].tolist() if token >= 0],
            prompt_len=int(before.prompt_len[b]),
        )
        num_rows = rows.shape[1] if before.num_rows is None else min(rows.shape[1], int(before.num_rows[b]))
        for r in range(num_rows):
            length = known + step if step >= 0 else committed + r
            out[b, r] = torch.from_numpy(transform.row(rows[b, r], tokens[:length])).to(out.dtype)
