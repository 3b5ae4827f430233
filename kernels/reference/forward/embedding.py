"""Definition of embedding."""

import torch

from .linear import scale


def embedding(
    input_ids: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    next_norm: torch.Tensor | None = None,
    scaled: torch.Tensor | None = None,
    next_squares: torch.Tensor | None = None,
) -> None:
    """out = weight[input_ids], in fp32; ids out of range read the nearest row. The others as linear's."""
    out.copy_(weight[input_ids.clamp(0, weight.shape[0] - 1).long()].float())
    if next_norm is not None and scaled is not None and next_squares is not None:
        scale(out, next_norm, scaled, next_squares)
