"""One token per row, as pearl_rt/reference/judge.py defines it."""

from __future__ import annotations

import numpy as np
import torch

from pearl_rt.reference import judge as definition
from pearl_rt.reference.noise import Floats, Purpose


def filtered(logits: torch.Tensor, thresholds: torch.Tensor | None) -> Floats:
    """fp32 in numpy, with -inf below the row's threshold; NaN stays."""
    rows = logits.detach().float().cpu().numpy().copy()
    if thresholds is not None:
        rows[rows < thresholds.cpu().numpy()[..., None]] = -np.inf
    return rows


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    positions: torch.Tensor,
    purpose: int,
    out: torch.Tensor,
    thresholds: torch.Tensor | None,
    workspace: torch.Tensor,
    kept: torch.Tensor | None = None,
    kept_rows: torch.Tensor | None = None,
) -> None:
    """logits [R, V]; temperature [R] fp32; seed, positions [R] int64; out [R] int32; thresholds [R] fp32;
    kept [S, V]: row kept_rows[r] ([R] int64) becomes row r of logits."""
    rows, own = filtered(logits, thresholds), (temperature.tolist(), seed.tolist(), positions.tolist())
    tokens = [definition.sample(*each, Purpose(purpose)) for each in zip(rows, *own, strict=True)]
    out.copy_(torch.tensor(tokens, dtype=out.dtype))
    if kept is not None and kept_rows is not None:
        kept[kept_rows] = logits
