"""Weights of the rows of windows by the chance that they count (PARD-2, arXiv 2605.08632): a draft of a
window stands only where all before it stand, so what a row learns is worth the chance of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowPlaces:
    """Where L rows stand in their windows. No two have the same start and depth."""

    starts: Tensor  # [L] int64: a window's last token that is final
    depths: Tensor  # [L] int64: 0 for the first place of a window


@torch.no_grad()
def run_length_weights(accepted: Tensor, places: WindowPlaces) -> Tensor:
    """Of each row, the chance that all places before it in its window stand, over the mean of these chances:
    [B, L] fp32, of mean 1, without gradient. The chance is the product of the acceptance of the rows before
    it; a place that has no row counts as 1. accepted: [B, L] fp32, see row_acceptance().
    """
    sizes = int(places.starts.max()) + 1, int(places.depths.max()) + 2
    stands = accepted.new_ones(len(accepted), *sizes)
    stands[:, places.starts, places.depths + 1] = accepted
    chances = stands.cumprod(dim=-1)[:, places.starts, places.depths]
    return chances / chances.mean()


def run_length_mean(losses: Tensor, accepted: Tensor, places: WindowPlaces) -> Tensor:
    """The mean of losses [B, L] by run_length_weights()."""
    return (losses * run_length_weights(accepted, places)).mean()
