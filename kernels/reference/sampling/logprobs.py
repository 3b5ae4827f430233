"""Log-probabilities of one token per row, and of the k likeliest, as pearl_rt/reference/logprobs.py defines
them."""

from __future__ import annotations

import torch

from pearl_rt.reference import logprobs as definition

from .sample import filtered


def logprobs(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    k: int,
    ids: torch.Tensor,
    logprobs: torch.Tensor,
    ranks: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    """logits [R, V]; token_ids [R] int32, -1: leave the row alone; ids, logprobs, ranks [R, 1 + k]."""
    rows = filtered(logits, None)
    for r, token in enumerate(token_ids.tolist()):
        if token < 0:
            continue
        likeliest = definition.logprobs(rows[r], int(rows[r].argmax()), k)  # the first one is not twice in it
        entries = [*definition.logprobs(rows[r], token, 0).items(), *list(likeliest.items())[:k]]
        for place, (i, (logprob, rank)) in enumerate(entries):
            ids[r, place], logprobs[r, place], ranks[r, place] = i, logprob, rank
