"""Rotary position tables: cos and sin of every position, with the scaling of the rope type folded in.

Bit for bit what transformers computes (torch, fp32), so that a model sees the angles it was trained with.
Knows the configuration, and nothing about attention: the kernels rotate x[:half] with x[half:].
"""

import math

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.rope_scaling import RopeScaling


def rope_tables(config: ModelConfig, max_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin: [max_len, head_dim/2] fp32, contiguous; row p holds the angles of position p."""
    inv_freq, attention_factor = rope_frequencies(config)
    positions = torch.arange(max_len, dtype=torch.float32)
    angles = positions[:, None] * inv_freq[None, :]  # [max_len, head_dim/2]
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def rope_frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Radians per position, [head_dim/2] fp32, and the factor that cos and sin are multiplied with."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    wavelengths = config.rope_theta**exponents  # over 2 pi
    scaling = config.rope_scaling
    if scaling is None:
        return 1.0 / wavelengths, 1.0
    if scaling.rope_type == "linear":
        return (1.0 / wavelengths) / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(1.0 / wavelengths, scaling), 1.0
    return _yarn(wavelengths, config, scaling), _yarn_attention_factor(scaling)


def _llama3(inv_freq: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths divided by factor, short ones kept, and a line between, in wavelengths per context.

    Every position is affected, not only those past the original context.
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context = scaling.original_max_position_embeddings
    assert low is not None and high is not None and context is not None  # held by RopeScaling
    wavelengths = 2 * math.pi / inv_freq
    kept_or_slowed = torch.where(wavelengths > context / low, inv_freq / scaling.factor, inv_freq)
    smooth = (context / wavelengths - low) / (high - low)
    between = (1 - smooth) * kept_or_slowed / scaling.factor + smooth * kept_or_slowed
    is_between = ~(wavelengths < context / high) & ~(wavelengths > context / low)
    return torch.where(is_between, between, kept_or_slowed)


def _yarn(wavelengths: torch.Tensor, config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """NTK by parts (arXiv 2309.00071, section 3.2), by rotations within the original context: dimensions
    with more than beta_fast keep their frequency, those with less than beta_slow are slowed by factor, and
    a linear ramp over dimensions lies between."""
    context = scaling.original_max_position_embeddings
    assert context is not None  # held by RopeScaling

    def dimension_with(rotations: float) -> float:
        logarithm = math.log(context / (rotations * 2 * math.pi))
        return (config.head_dim * logarithm) / (2 * math.log(config.rope_theta))

    low, high = dimension_with(scaling.beta_fast), dimension_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(len(wavelengths), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return (1.0 / (scaling.factor * wavelengths)) * (1 - kept) + (1.0 / wavelengths) * kept


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def magnitude(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)
