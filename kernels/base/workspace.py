"""A workspace: one uint8 tensor of the caller's, cut into the arrays that launches hand to each other.

Knows no kernel. Nothing in it is kept from one call to the next, and nothing has to be cleared.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from .checks import check_workspace

Part = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of one array
ALIGNMENT = 16


def _padded(part: Part) -> int:
    shape, dtype = part
    return -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def num_bytes(parts: Sequence[Part]) -> int:
    """What holds all of them, each aligned."""
    return sum(map(_padded, parts))


def carve(op: str, workspace: torch.Tensor, parts: Sequence[Part]) -> list[torch.Tensor]:
    """Views, in order. Raises ValueError if the workspace is too small or not aligned."""
    check_workspace(op, workspace, num_bytes(parts))
    views, start = [], 0
    for part in parts:
        shape, dtype = part
        views.append(workspace[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape))
        start += _padded(part)
    return views
