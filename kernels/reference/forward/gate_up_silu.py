"""The definition of gate_up_silu."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gate_up_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor,
    num_live: torch.Tensor | None = None,
) -> None:
    """x: [T, K]; weight: [2 * I, K], the gate's rows, then up's; out: [T, I]; num_live: [1], 0 leaves all as
    it is, or None. The workspace is not used."""
    if num_live is not None and num_live.item() == 0:
        return
    gate, up = (x.float() @ weight.float().t()).chunk(2, dim=-1)
    out.copy_(F.silu(gate) * up)
