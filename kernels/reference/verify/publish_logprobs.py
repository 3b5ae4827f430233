"""Log-probabilities of what a round committed, slot by slot."""

from __future__ import annotations

import torch

from ..sampling.logprobs import logprobs


def publish_logprobs(
    target_logits: torch.Tensor,
    token_ids: torch.Tensor,
    before: torch.Tensor,
    committed: torch.Tensor,
    round: torch.Tensor,
    num_logprobs: torch.Tensor,
    k: int,
    ring: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    """Shapes and meaning as in kernels/verify/publish_logprobs.py."""
    for b, wanted in enumerate(num_logprobs.tolist()):
        first, end = int(before[b]), int(committed[b])
        if wanted < 0 or end <= first:
            continue
        number = int(round[b]) - 1
        entry = ring[number % len(ring), b]
        ids, values, ranks = (torch.zeros(end - first, 1 + wanted, dtype=torch.int32) for _ in range(3))
        logits = target_logits[b, : end - first].cpu()
        tokens = token_ids[b, first:end].cpu()
        logprobs(logits, tokens, wanted, ids, values.view(torch.float32), ranks, workspace)
        entries = torch.stack((ids, values, ranks), dim=2).to(ring.device)
        for r in range(end - first):
            start = 1 + r * (1 + k) * 3
            entry[start : start + entries[r].numel()] = entries[r].flatten()
        entry[0] = number
