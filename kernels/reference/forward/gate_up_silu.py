"""The definition of gate_up_silu."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .coded import values_of


def gate_up_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor,
    num_live: torch.Tensor | None = None,
    squares: torch.Tensor | None = None,
    eps: float = 0.0,
    scales: torch.Tensor | None = None,
    group: int = 32,
) -> None:
    """x: [T, K]; weight: [2 * I, K], the gate's rows, then up's; out: [T, I]; num_live: [1], 0 leaves all as
    it is, or None; squares: [T, P], of what x was scaled from, or None. With scales the weight is codes,
    whose values are rounded to the dtype of x. The workspace is not used."""
    if num_live is not None and num_live.item() == 0:
        return
    product = x.float() @ values_of(weight, scales, group, x.shape[1]).to(x.dtype).float().t()
    if squares is not None:
        product *= torch.rsqrt(squares.sum(-1, keepdim=True) / x.shape[1] + eps)
    gate, up = product.chunk(2, dim=-1)
    out.copy_(F.silu(gate) * up)
