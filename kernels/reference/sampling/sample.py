"""One token per row: greedy, or the Gumbel-max of its softmax."""

from __future__ import annotations

import torch

from . import noise


def usable(logits: torch.Tensor) -> torch.Tensor:
    """Of each row: no NaN, no +inf, and not all -inf. [..., V] -> [...]"""
    return (logits < torch.inf).all(-1) & (logits > -torch.inf).any(-1)


def filtered(logits: torch.Tensor, thresholds: torch.Tensor | None) -> torch.Tensor:
    """fp32, with -inf below the row's threshold; NaN stays."""
    logits = logits.float()
    return logits if thresholds is None else logits.masked_fill(logits < thresholds[..., None], -torch.inf)


def scaled(logits: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """(logits - max) * inverse: at most 0, and 0 at the argmax."""
    return (logits - logits.amax(-1, keepdim=True)) * inverse[..., None]


def tokens(
    logits: torch.Tensor, temperature: torch.Tensor, seed: torch.Tensor, positions: torch.Tensor, purpose: int
) -> torch.Tensor:
    """[R] int64, -1 in rows that cannot be used. logits: [R, V] fp32."""
    first = torch.arange(
        logits.shape[-1], 0, -1, device=logits.device
    )  # the lowest index has the largest rank
    greedy = ((logits == logits.amax(-1, keepdim=True)) * first).argmax(-1)
    u = noise.uniform(noise.words(seed, positions, purpose, logits.shape[-1]))
    keys = scaled(logits, noise.inverse_temperature(temperature)) + noise.gumbel(u)
    best = keys.nan_to_num(nan=-torch.inf, neginf=-torch.inf).amax(-1, keepdim=True)
    drawn = ((keys == best) * first).argmax(-1)
    token = torch.where((temperature > 0) & (best[:, 0] > -torch.inf), drawn, greedy)
    return torch.where(usable(logits), token, -1)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    positions: torch.Tensor,
    purpose: int,
    out: torch.Tensor,
    thresholds: torch.Tensor | None,
    workspace: torch.Tensor,
) -> None:
    """logits [R, V]; temperature [R] fp32; seed, positions [R] int64; out [R] int32; thresholds [R] fp32."""
    out.copy_(tokens(filtered(logits, thresholds), temperature, seed, positions, purpose))
