"""Tiny random models in memory, for where the shipped pair is too slow: in Triton's interpreter."""

from typing import Any

import torch

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    torch_dtype="float32",
)


def random_pair() -> tuple[Any, ...]:
    """Configuration and tensors of a target, then of a draft that often says the same."""
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        spread = 1.0 if "embed" in name else 1.5 / shape[-1] ** 0.5
        return torch.randn(shape, generator=generator) * spread

    target = {name: tensor(name, shape) for name, shape in tensor_shapes(CONFIG).items()}
    draft = {name: 0.9 * weight + 0.12 * tensor(name, weight.shape) for name, weight in target.items()}
    return CONFIG, target, CONFIG, draft
