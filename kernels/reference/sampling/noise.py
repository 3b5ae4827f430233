"""Noise words in torch, on any device: the bits of pearl_rt/reference/noise.py. Words are int64 that hold 32
bits."""

from __future__ import annotations

import torch

LOW = 0xFFFFFFFF


def words(seed: torch.Tensor, positions: torch.Tensor, purpose: int, count: int) -> torch.Tensor:
    """The noise words of indices 0 .. count - 1: [R, count]. seed, positions: [R] int64."""
    rows, groups = len(seed), -(-count // 4)
    c0 = torch.arange(groups, device=seed.device).expand(rows, groups)
    c1, c2 = (
        part.expand(rows, groups) for part in ((positions & LOW)[:, None], (positions >> 32 & LOW)[:, None])
    )
    c3 = torch.full_like(c0, purpose)
    k0, k1 = (seed & LOW)[:, None], (seed >> 32 & LOW)[:, None]
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (product1 >> 32 & LOW) ^ c1 ^ k0, product1 & LOW
        c2, c3 = (product0 >> 32 & LOW) ^ c3 ^ k1, product0 & LOW
        k0, k1 = k0 + 0x9E3779B9 & LOW, k1 + 0xBB67AE85 & LOW
    return torch.stack([c0, c1, c2, c3], dim=2).reshape(rows, 4 * groups)[:, :count]


def uniform(noise: torch.Tensor) -> torch.Tensor:
    """(word + 0.5) * 2^-32 rounded once to fp32: from 2^-33 to 1."""
    return ((noise.double() + 0.5) * 2.0**-32).float()
