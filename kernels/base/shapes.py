"""The model shapes that kernels are compiled, checked and timed for; figures from published config.json."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What decides the shapes of kernels."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(N, K) of the plain linear layers by name; gate_up has an operator of its own."""
        q_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv_proj": (q_size + 2 * kv_size, self.hidden),
            "o_proj": (self.hidden, q_size),
            "down_proj": (self.hidden, self.intermediate),
            "lm_head": (self.vocab, self.hidden),
        }


SHAPES = (
    ModelShape("Llama-68M", 768, 3072, 2, 12, 12, 64, 32000),
    ModelShape("SmolLM-135M", 576, 1536, 30, 9, 3, 64, 49152),
    ModelShape("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 64, 128256),
    ModelShape("Llama-2-7B", 4096, 11008, 32, 32, 32, 128, 32000),
    ModelShape("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128, 128256),
)
