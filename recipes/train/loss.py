"""The loss of many rows, from what a target and a draft put in front of their heads; logits in chunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.train.divergence import DIVERGENCES, row_acceptance
from recipes.train.drafts.run_length import WindowPlaces, run_length_mean
from recipes.train.model.session import LOGIT_ROWS


def mean_loss(
    states: Tensor,  # [B, L, hidden]: the target's
    own: Tensor,  # [B, L, hidden of the draft]
    wanted: Tensor,  # [B, L] int64: the text's next tokens
    heads: tuple[Tensor, Tensor],  # [V, hidden] each: the target's and the draft's
    divergence: str,
    cross_entropy: float = 0.0,
    places: WindowPlaces | None = None,
) -> Tensor:
    """Mean over rows of (1 - c) * divergence(p, q) - c * log q(next token), c = `cross_entropy`; in fp32.
    places: of the L rows, which then count by run_length_weights(). None: all rows count the same.
    """
    losses: list[Tensor] = []
    accepted: list[Tensor] = []
    parts = (x.flatten(0, 1).split(LOGIT_ROWS) for x in (states, own, wanted))
    for theirs, ours, token in zip(*parts, strict=True):
        with torch.no_grad():
            p = F.linear(theirs, heads[0])
        q = F.linear(ours, heads[1])
        loss = (1 - cross_entropy) * DIVERGENCES[divergence](p, q)
        if cross_entropy:
            loss = loss + cross_entropy * F.cross_entropy(q.float(), token, reduction="none")
        losses.append(loss)
        if places is not None:
            accepted.append(row_acceptance(p, q))
    if places is None:
        return torch.cat(losses).mean()
    return run_length_mean(
        torch.cat(losses).view(wanted.shape), torch.cat(accepted).view(wanted.shape), places
    )
