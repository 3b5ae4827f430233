"""Thresholds for min-p, top-k and top-p, as pearl_rt/reference/processors.py defines them."""

from __future__ import annotations

from typing import Any

import torch

from pearl_rt.reference.processors import Transform, usable

from .sample import filtered


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
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for r, row in enumerate(filtered(logits, None)):
        asked = Transform(**{name: each[r].item() for name, each in given.items() if each is not None})
        on = asked.temperature > 0 and usable(row)
        thresholds[r] = float(asked.threshold(row)) if on else -torch.inf
