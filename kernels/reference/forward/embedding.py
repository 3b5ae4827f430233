"""Definition of embedding."""

import torch

from .coded import values_of
from .linear import scale


def embedding(
    input_ids: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    next_norm: torch.Tensor | None = None,
    scaled: torch.Tensor | None = None,
    next_squares: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    group: int = 32,
) -> None:
    """out = weight[input_ids], in fp32; ids out of range read the nearest row. With scales the weight is
    codes, whose values are not rounded. The others as linear's."""
    rows = input_ids.clamp(0, weight.shape[0] - 1).long()
    picked = None if scales is None else scales[:, rows]
    out.copy_(values_of(weight[rows], picked, group, out.shape[1]).float())
    if next_norm is not None and scaled is not None and next_squares is not None:
        scale(out, next_norm, scaled, next_squares)
