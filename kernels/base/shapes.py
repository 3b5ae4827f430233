"""The shapes of models by short name, and those that kernels are compiled, checked and timed for.

Figures are those of the published config.json, except where a line says otherwise. Training and the
benchmarks take theirs from here, and add what only they use. Knows nothing of weights, kernels or torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What decides the shapes of tensors and kernels."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float = 10000.0

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


MODELS = {
    "68m": ModelShape("Llama-68M", 768, 3072, 2, 12, 12, 64, 32000),
    "88m": ModelShape("Pearl-88M", 768, 2048, 12, 12, 4, 64, 8192),  # ours: speed lines are stated for it
    "135m": ModelShape("SmolLM-135M", 576, 1536, 30, 9, 3, 64, 49152),
    "1b": ModelShape("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 64, 128256, rope_theta=500000.0),
    "1.1b": ModelShape("TinyLlama-1.1B", 2048, 5632, 22, 32, 4, 64, 32000),
    "7b": ModelShape("Llama-2-7B", 4096, 11008, 32, 32, 32, 128, 32000),
    "8b": ModelShape("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128, 128256, rope_theta=500000.0),
    "13b": ModelShape("Llama-2-13B", 5120, 13824, 40, 40, 40, 128, 32000),
}
SHAPES = tuple(MODELS[name] for name in ("68m", "135m", "1b", "7b", "8b"))
