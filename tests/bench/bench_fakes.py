"""What the tests of the bench on a device share: tiny planted weights, runs and times by hand, a model of
fixed logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch

from bench.model_pairs import planting
from bench.model_pairs.shapes import config_of
from bench.rounds.round_times import RoundTimes
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.kernels.base.shapes import ModelShape
from pearl_rt.model.llama import LlamaWeights
from pearl_rt.types.metrics import RequestMetrics, TraceRow

CPU = torch.device("cpu")
TINY = config_of(ModelShape("tiny", 32, 48, 2, 4, 2, 8, 96))

TINY_SHAPES = {
    "target": ModelShape("target", 128, 256, 2, 4, 2, 32, 1024),
    "draft": ModelShape("draft", 96, 128, 2, 2, 2, 48, 512),
}


def planted_tensors(
    config: ModelConfig, noise_norm: float, head_scale: float, seed: int, *, rule_seed: int | None = None
) -> dict[str, torch.Tensor]:
    """All tensors of one planted model, made on the host."""
    successor = planting.successor_cycle(config.vocab_size, seed if rule_seed is None else rule_seed)
    pool = planting.RandomPool(seed)
    return dict(planting.PlantedTensors(config, successor, noise_norm, head_scale, pool))


def packed(config: ModelConfig, seed: int = 3) -> tuple[dict[str, torch.Tensor], LlamaWeights]:
    """Planted tensors, and the same as kernels read them, in fp32."""
    tensors = planted_tensors(config, 2.0, 3.0, seed)
    return tensors, LlamaWeights.pack(config, tensors, dtype=torch.float32, device=CPU)


def run_of(strategy: str, rows: Sequence[TraceRow], rounds: int, gamma: int = 4) -> RequestMetrics:
    times = tuple(0.001 * i for i in range(rounds + 1))
    return RequestMetrics(
        strategy, 0 if strategy == "ar" else gamma, "shared", 4, 0, times, rounds, 6, 8, 2, trace=tuple(rows)
    )


def times_of(window: float, score: float, verify: float, together: float = math.nan) -> RoundTimes:
    return RoundTimes(100, window, score, verify, together, 5.0, 6.0, 2.0, 0.01)


def steady_run(tokens: Sequence[int], us: float, strategy: str = "sd") -> RequestMetrics:
    """So many tokens in each round of `us`, behind a first token at 50 ms."""
    times = [0.05]
    for number, count in enumerate(tokens, 1):
        times += [0.05 + number * us * 1e-6] * count
    return RequestMetrics(strategy, 4, "shared", 4, 0, tuple(times), len(tokens), 0, 0, 0)


class Logits:
    """A model of transformers, as far as it is asked: fixed logits."""

    def __init__(self, logits: torch.Tensor, dtype: torch.dtype) -> None:
        self.logits, self.dtype = logits, dtype

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter([torch.zeros(1, dtype=self.dtype)])

    def __call__(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[None, : ids.shape[1]].to(self.dtype))
