"""The definition of linear."""

from __future__ import annotations

import torch


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    workspace: torch.Tensor,
    num_live: torch.Tensor | None = None,
) -> None:
    """x: [T, K]; weight: [N, K]; out: [T, N], overwritten, or None; bias: [N] or None; residual: [T, N] fp32,
    added to, or None; num_live: [1], 0 leaves all as it is, or None. The workspace is not used."""
    if num_live is not None and num_live.item() == 0:
        return
    product = x.float() @ weight.float().t()
    if bias is not None:
        product += bias.float()
    if residual is not None:
        residual += product
    if out is not None:
        out.copy_(product)
