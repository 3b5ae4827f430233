"""Log-probabilities of one token per row, and of the k likeliest."""

from __future__ import annotations

import torch

from . import noise


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
    for r, token in enumerate(token_ids.tolist()):
        if token < 0:
            continue
        row = logits[r].float()
        centred = row - row.max()
        mass = noise.log(noise.exp(centred).double().sum().float())
        likeliest = row.sort(descending=True, stable=True).indices[:k].tolist()
        for place, i in enumerate((token, *likeliest)):
            ids[r, place] = i
            logprobs[r, place] = centred[i] - mass
            ranks[r, place] = 1 + (row > row[i]).sum()
