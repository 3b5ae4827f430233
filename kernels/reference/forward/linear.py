"""The definition of linear."""

from __future__ import annotations

import torch

from .coded import values_of


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    workspace: torch.Tensor,
    num_live: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
    eps: float = 0.0,
    next_norm: torch.Tensor | None = None,
    scaled: torch.Tensor | None = None,
    next_squares: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    group: int = 32,
) -> None:
    """x: [T, K]; weight: [N, K]; out: [M, N], overwritten, or None; bias: [N] or None; residual: [M, N] fp32,
    added to, or None; num_live: [1], 0 leaves all as it is, or None; rows: [M], those of x, or None: all.
    squares: [T, P], of what x was scaled from, or None; next_norm: [N], scaled: [M, N], next_squares: [M, Q],
    both overwritten, or None. With scales the weight is codes, whose values are rounded to the dtype of x.
    The workspace is not used."""
    if num_live is not None and num_live.item() == 0:
        return
    picked = slice(None) if rows is None else rows.long()
    values = values_of(weight, scales, group, x.shape[1]).to(x.dtype)
    product = x[picked].float() @ values.float().t()
    if squares is not None:
        product *= torch.rsqrt(squares[picked].sum(-1, keepdim=True) / x.shape[1] + eps)
    if bias is not None:
        product += bias.float()
    if residual is not None:
        residual += product
    if out is not None:
        out.copy_(product)
    if residual is not None and next_norm is not None and scaled is not None and next_squares is not None:
        scale(residual, next_norm, scaled, next_squares)


def scale(
    residual: torch.Tensor, next_norm: torch.Tensor, scaled: torch.Tensor, next_squares: torch.Tensor
) -> None:
    """What the layer that reads the residual [M, N] next is given: scaled [M, N] = residual * next_norm,
    rounded, and sums of squares over parts of 16, 32 or 64 columns, next_squares [M, Q]."""
    scaled.copy_(residual * next_norm.float())
    next_squares.zero_()
    N, Q = residual.shape[1], next_squares.shape[1]
    width = next(width for width in (16, 32, 64) if -(-N // width) == Q)
    for part in range(Q):
        next_squares[:, part] = residual[:, part * width : (part + 1) * width].square().sum(-1)
