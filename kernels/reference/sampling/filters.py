"""Thresholds for min-p, top-k and top-p: kept iff logit >= threshold."""

from __future__ import annotations

import torch

from . import noise
from .sample import scaled, usable


def filters(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
    thresholds: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    """logits [R, V]; all else [R]: temperature, top_p, min_p, thresholds fp32, top_k int32."""
    vocab = logits.shape[1]
    thresholds.fill_(-torch.inf)
    for r in range(len(logits)):
        row, t = logits[r].float() + 0.0, temperature[r]
        if not t > 0 or not usable(row):
            continue
        floor = torch.tensor(-torch.inf, device=row.device)
        if min_p is not None and min_p[r] > 0:
            floor = torch.minimum(row.max() + noise.log(min_p[r].clamp(min=noise.LIMITS.tiny)) * t, row.max())
        if top_k is not None and 0 < top_k[r] < vocab:
            floor = torch.maximum(floor, row.topk(int(top_k[r])).values[-1])
        if top_p is not None and top_p[r] < 1:
            kept = row[row >= floor].sort(descending=True).values
            mass = noise.exp(scaled(kept, noise.inverse_temperature(t))).double()
            above = torch.stack([mass[kept > value].sum() for value in kept])
            floor = torch.maximum(floor, kept[above < (top_p[r] * mass.sum()).clamp(min=1e-30)][-1])
        thresholds[r] = floor
