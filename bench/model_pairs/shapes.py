"""The shapes of real Llama-family models, by size: what decides speed, without the weights.

Knows nothing of weights. Shapes come from pearl_rt.kernels.base.shapes, except 0.01m, 8m, 51m and 127m,
which only
the benchmarks use: 8m is a thin draft for 88m, and 0.01m is for Triton's interpreter, in which even that
takes a third of a second a pass. 127m has four layers with the heads of an 8B, four queries to a key, 51m
the first four layers of 135m: what is compared bit for bit on a GPU is compared on them. Every shape is used
with an untied head, because a planted pair (see planted.py) needs one; a decode step reads the same bytes
either way, since of a tied matrix it reads all of it once, as the head, and of an embedding one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.shapes import MODELS, ModelShape


@dataclass(frozen=True)
class Shape:
    """One model's dimensions, in the order of a config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    @classmethod
    def of(cls, model: ModelShape) -> Self:
        """The shape of a model that kernels know; its heads share out the hidden size."""
        return cls(
            *(model.hidden, model.intermediate, model.layers, model.heads, model.kv_heads, model.vocab),
            rope_theta=model.rope_theta,
        )

    @property
    def num_params(self) -> int:
        """Parameters with an untied head."""
        head_dim = self.hidden_size // self.num_attention_heads
        kv_size = self.num_key_value_heads * head_dim
        attention = 2 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * kv_size
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = 2 * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + embeddings + self.hidden_size

    def config_dict(self, vocab_size: int) -> dict[str, Any]:
        """The content of config.json for this shape over a vocabulary of vocab_size ids."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


SHAPES = {
    "8m": Shape(256, 1024, 4, 4, 2, 8192),
    "51m": Shape(576, 1536, 4, 9, 3, 32000),
    "127m": Shape(1024, 4096, 4, 8, 2, 32000),
    **{name: Shape.of(model) for name, model in MODELS.items()},
    "0.01m": Shape(32, 64, 1, 2, 1, 96),
}


def shape_named(name: str) -> Shape:
    """The shape of that name; ConfigError lists the names there are."""
    if name not in SHAPES:
        raise ConfigError(f"no model shape is called {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]
