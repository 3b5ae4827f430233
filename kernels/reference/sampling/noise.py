"""Noise in torch: the bits of pearl_rt/noise.py. Words are int64 that hold 32 bits."""

from __future__ import annotations

import torch

LOW = 0xFFFFFFFF
SQRT_HALF_BITS = 0x3F3504F3
LN2_HIGH = float.fromhex("0x1.62e3p-1")
LN2_LOW = float.fromhex("0x1.2fefa2p-17")
LOG2_E = float.fromhex("0x1.715476p+0")
ROUNDER = 1.5 * 2**23
LOG_SERIES = [float.fromhex(c) for c in ("0xf89e26p-26", "0x91e9eep-25", "0xccce13p-25", "0xaaaaaap-24")]
EXP_SERIES = [float(torch.tensor(1.0) / torch.tensor(f)) for f in (5040.0, 720.0, 120.0, 24.0, 6.0, 2.0)]
LIMITS = torch.finfo(torch.float32)


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


def _log_reduced(k: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    s = f / (2.0 + f)
    z = s * s
    series = torch.full_like(z, LOG_SERIES[0])
    for coefficient in LOG_SERIES[1:]:
        series = coefficient + z * series
    series = z * series
    half_square = 0.5 * f * f
    return k * LN2_HIGH - ((half_square - (s * (half_square + series) + k * LN2_LOW)) - f)


def _split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shifted = x.view(torch.int32) - SQRT_HALF_BITS
    return shifted >> 23, ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).view(torch.float32)


def log(x: torch.Tensor) -> torch.Tensor:
    """log of normal x > 0 and +inf."""
    k, mantissa = _split(x)
    return torch.where(x == torch.inf, torch.inf, _log_reduced(k.float(), mantissa - 1.0))


def exponential(u: torch.Tensor) -> torch.Tensor:
    """-log(1 - u), an Exp(1) variate; +inf at u = 1."""
    rest = 1.0 - u
    lost = (1.0 - rest) - u
    k, mantissa = _split(rest)
    scale = ((127 - k) * (1 << 23)).to(torch.int32).view(torch.float32)
    return torch.where(u >= 1.0, torch.inf, -_log_reduced(k.float(), (mantissa - 1.0) + lost * scale))


def gumbel(u: torch.Tensor) -> torch.Tensor:
    """-log(-log(1 - u)); -inf at u = 1."""
    return -log(exponential(u))


def exp(x: torch.Tensor) -> torch.Tensor:
    """exp of x in [-inf, 0]; 0 below -87."""
    inside = x.clamp(min=-87.0)
    n = (inside * LOG2_E + ROUNDER) - ROUNDER
    r = (inside - n * LN2_HIGH) - n * LN2_LOW
    series = torch.full_like(r, EXP_SERIES[0])
    for coefficient in EXP_SERIES[1:]:
        series = series * r + coefficient
    series = series * (r * r) + r
    scale = ((n.int() + 127) * (1 << 23)).to(torch.int32).view(torch.float32)
    return torch.where(x < -87.0, 0.0, (series + 1.0) * scale)


def inverse_temperature(temperature: torch.Tensor) -> torch.Tensor:
    """1 / temperature, kept finite and normal. temperature > 0."""
    return (1.0 / temperature).clamp(LIMITS.tiny, LIMITS.max)
