"""One round's verdict and its commit, slot by slot."""

from __future__ import annotations

import torch

from ..sampling.sample import filtered
from .judge import verdict

RUNNING, STOP, LENGTH, BAD_LOGITS = 1, 2, 3, 4


def verify(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor | None,
    token_ids: torch.Tensor,
    committed: torch.Tensor,
    pending: torch.Tensor,
    finish_reason: torch.Tensor,
    round: torch.Tensor,
    ring: torch.Tensor,
    draft_token_ids: torch.Tensor,
    num_draft_tokens: torch.Tensor,
    num_rows: torch.Tensor,
    max_total_len: torch.Tensor,
    stop_token_ids: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    kind: str,
    workspace: torch.Tensor,
    target_thresholds: torch.Tensor | None = None,
    draft_thresholds: torch.Tensor | None = None,
) -> None:
    """Shapes and meaning as in kernels/verify/verify.py."""
    for b in (finish_reason == RUNNING).nonzero()[:, 0].tolist():
        base, before, number, rows = (int(t[b]) for t in (committed, pending, round, num_rows))
        window = int(num_draft_tokens[b]) if number else 0
        token_ids[b, base + before : base + before + window] = draft_token_ids[b, :window]
        num_draft = min(rows, before + window)
        positions = list(range(base, base + rows))
        target = filtered(
            target_logits[b, :rows], None if target_thresholds is None else target_thresholds[b, :rows]
        )
        draft = None
        if draft_logits is not None:
            steps = [position % draft_logits.shape[1] for position in positions[:num_draft]]
            limits = None if draft_thresholds is None else draft_thresholds[b, steps]
            draft = filtered(draft_logits[b, steps], limits)
        t, candidates = float(temperature[b]), token_ids[b, base : base + num_draft].tolist()
        accept_len, token, bad = verdict(target, draft, candidates, positions, t, int(seed[b]), kind)
        new = [] if bad >= 0 else candidates[:accept_len]
        if token >= 0:
            token_ids[b, base + accept_len] = token
            new.append(token)
        kept, reason = 0, BAD_LOGITS if bad >= 0 else RUNNING
        while reason == RUNNING and kept < len(new):
            kept += 1
            if new[kept - 1] in stop_token_ids[b].tolist():
                reason = STOP
            elif base + kept >= int(max_total_len[b]):
                reason = LENGTH
        committed[b] = base + kept
        pending[b] = before + window - num_draft if reason == RUNNING and token < 0 else 0
        finish_reason[b] = reason
        round[b] = number + 1
        header = [number, accept_len, num_draft, before, reason, kept]
        entry = torch.tensor([*header, *new[:kept]], dtype=torch.int32, device=ring.device)
        ring[number % ring.shape[0], b, : len(entry)] = entry
        if bad >= 0:
            ring[number % ring.shape[0], b, len(header) + bad] = candidates[bad] if bad < num_draft else -1
