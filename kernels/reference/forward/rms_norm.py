"""The definition of rms_norm."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, residual: torch.Tensor | None
) -> None:
    """x: [T, H]; weight: [H]; out: [T, H], overwritten; residual: [T, H] fp32, x is added to it, or None."""
    row = x.float()
    if residual is not None:
        residual += row
        row = residual
    norm = row * torch.rsqrt(row.square().mean(-1, keepdim=True) + eps) * weight.float()
    out.copy_(norm)
