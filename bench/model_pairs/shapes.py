"""The shapes of real Llama-family models, by size: what decides speed, without the weights.

Knows nothing of weights. Shapes come from pearl_rt.kernels.base.shapes. Only the benchmarks use 0.01m, 8m,
51m and 127m. 8m is a thin draft for 88m. 0.01m is for Triton's interpreter, where a pass of it takes a third
of a second. 127m has four layers with the heads of an 8B, four queries to a key. 51m has the first four
layers of 135m. On a GPU, bits are compared on these two.

Every shape has an untied head, because a planted pair (see planted.py) needs one. A decode step reads the
same bytes either way: all of the head, and one row of an embedding.
"""

from __future__ import annotations

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.shapes import MODELS, ModelShape

RMS_EPS = 1e-5
SHAPES = {
    "8m": ModelShape("8m", 256, 1024, 4, 4, 2, 64, 8192),
    "51m": ModelShape("51m", 576, 1536, 4, 9, 3, 64, 32000),
    "127m": ModelShape("127m", 1024, 4096, 4, 8, 2, 128, 32000),
    **MODELS,
    "0.01m": ModelShape("0.01m", 32, 64, 1, 2, 1, 16, 96),
}


def shape_named(name: str) -> ModelShape:
    """The shape of that name; ConfigError lists the names there are."""
    if name not in SHAPES:
        raise ConfigError(f"no model shape is called {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def config_of(
    shape: ModelShape, vocab_size: int | None = None, max_position_embeddings: int = 2048
) -> ModelConfig:
    """A model of that shape with an untied head. vocab_size: another one than the shape's."""
    return ModelConfig(
        model_type="llama",
        vocab_size=vocab_size or shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=RMS_EPS,
        rope_theta=shape.rope_theta,
        max_position_embeddings=max_position_embeddings,
        bos_token_id=0,
        eos_token_ids=(1,),
    )
