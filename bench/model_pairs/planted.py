"""Planted pairs: two models of real shapes and random weights that agree at a chosen rate, so that speed
can be measured at true size without a download. `planted:88m+8m@0.8` is a target of 88M, a draft of 8M,
agreement 0.8.

Does not know how fast anything runs, nor what a strategy is.

How it is planted. Both models share a next-token rule: a random cycle through the whole vocabulary,
`next[t]`. In each model the head's row of `next[t]` is the (unit) embedding of `t` times c, so that a
residual stream which still carries its token's embedding scores that token's successor highest. The layers
are random; through o_proj and down_proj they add noise of norm n to the embedding's 1. After the final norm
a wrong token's logit is c * N(0, 1), the right one's is c * r with r = sqrt(hidden / (1 + n^2)): the rule
is followed with probability

    agree(r) = E_z [ Phi(r + z) ^ (vocab - 1) ]            (z: the right logit's own noise)

The target gets r = 9, which follows the rule all but always: its greedy text walks the cycle, and no token
comes back within a whole vocabulary, so the text can't fall into a loop. The draft's n starts from the
formula and is bisected until the draft agrees at rate alpha along such text. Its misses come from the
noise, which depends on the token and, through attention made sharp, on the tokens before it: different
positions miss as good as independently.

At temperature 0.8 the target's c puts 0.95 of the mass on the successor; the draft's c is larger, a confident
draft, because a miss needs the draft's noise to outbid the rule and not to drown it.

The vocabulary of a pair is the target's; the draft's own is replaced by it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.model_pairs.shapes import Shape, shape_named
from pearl_rt.config import ModelConfig
from pearl_rt.errors import ConfigError
from pearl_rt.loader import save_checkpoint
from pearl_rt.models.shapes import tensor_shapes

Tensors = Mapping[str, torch.Tensor]
# (config, tensors, sequences of ids) -> the greedy next id after every token of every sequence.
Predict = Callable[[ModelConfig, Tensors, list[list[int]]], list[np.ndarray]]

TARGET_RATIO = 9.0  # r of the target: it misses its own rule about once in 1e5 tokens
TARGET_MASS = 0.95  # probability of the rule's token in the target at MASS_TEMPERATURE
MASS_TEMPERATURE = 0.8
DRAFT_HEAD_SCALE = 6.0
PROMPT_LEN = 32  # random ids before the walk in a calibration sequence
WALK_LEN = 224
POOL_SIZE = (1 << 24) + 43  # an odd length: no two rows of a matrix are cut from the same place
ALPHA_RANGE = (0.05, 0.98)
NUM_BISECTIONS = 7
NUM_STEPS = NUM_BISECTIONS + 2


@dataclass(frozen=True)
class PairSpec:
    """`planted:TARGET+DRAFT@ALPHA` taken apart."""

    target: str
    draft: str
    alpha: float

    @classmethod
    def parse(cls, text: str) -> PairSpec:
        match = re.fullmatch(r"planted:([0-9.]+[mb])\+([0-9.]+[mb])@([0-9.]+)", text)
        if match is None:
            raise ConfigError(
                f"a pair is written planted:TARGET+DRAFT@ALPHA, as planted:88m+8m@0.8, not {text!r}"
            )
        spec = cls(match[1], match[2], float(match[3]))
        shape_named(spec.target)
        shape_named(spec.draft)
        low, high = ALPHA_RANGE
        if not low <= spec.alpha <= high:
            raise ConfigError(f"agreement {spec.alpha} can't be planted: choose {low} to {high}")
        return spec

    def __str__(self) -> str:
        return f"planted:{self.target}+{self.draft}@{self.alpha}"


@dataclass(frozen=True)
class Planting:
    """What was asked of two models that agree, and what was reached."""

    spec: PairSpec
    successor: np.ndarray  # [vocab] int64, the rule
    # set by the calibration
    noise_norm: float
    alpha: float  # agreement along the rule's text, which is the target's; not the calibration's draws
    alpha_error: float  # its standard error
    rule_kept: float  # how often the target follows the rule: 1 if its text is the rule's

    def prompts(self, count: int, length: int, seed: int) -> list[list[int]]:
        """count prompts of random ids [length]."""
        return random_prompts(len(self.successor), count, length, seed)


@dataclass(frozen=True)
class PlantedPair(Planting):
    """The same with both models, on the host."""

    target_config: ModelConfig
    target_tensors: Tensors
    draft_config: ModelConfig
    draft_tensors: Tensors

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Write both as checkpoint directories below directory; returns (target, draft)."""
        paths = directory / "target", directory / "draft"
        save_checkpoint(paths[0], self.target_config, self.target_tensors)
        save_checkpoint(paths[1], self.draft_config, self.draft_tensors)
        return paths


def random_prompts(vocab_size: int, count: int, length: int, seed: int) -> list[list[int]]:
    """count prompts of random ids [length]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab_size, length).tolist() for _ in range(count)]


def successor_cycle(vocab_size: int, seed: int) -> np.ndarray:
    """[vocab] int64: one random cycle through every id."""
    order = np.random.default_rng([seed, vocab_size]).permutation(vocab_size)
    successor = np.empty(vocab_size, np.int64)
    successor[order] = np.roll(order, -1)
    return successor


def agreement_of_ratio(ratio: float, vocab_size: int) -> float:
    """agree(r) of the module's docstring, by summing over z."""
    z = np.linspace(-6, 6, 481)
    weight = np.exp(-z * z / 2)
    cdf = 0.5 * torch.erfc(torch.from_numpy(-(ratio + z) / sqrt(2))).numpy()
    return float((weight * cdf ** (vocab_size - 1)).sum() / weight.sum())


def ratio_of_agreement(alpha: float, vocab_size: int) -> float:
    """The r at which agree(r) == alpha."""
    low, high = 0.0, 16.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if agreement_of_ratio(middle, vocab_size) < alpha else (low, middle)
    return (low + high) / 2


def noise_of_ratio(ratio: float, hidden_size: int) -> float:
    """The norm n of the layers' noise at which r == ratio; at least a tenth of the embedding's."""
    return sqrt(max(hidden_size / ratio**2 - 1, 0.01))


def target_head_scale(vocab_size: int) -> float:
    """c at which the rule's token has TARGET_MASS: r s - s^2/2 - ln V = logit(mass), s = c/T."""
    goal = log(TARGET_MASS / (1 - TARGET_MASS)) + log(vocab_size)
    return MASS_TEMPERATURE * (TARGET_RATIO - sqrt(TARGET_RATIO**2 - 2 * goal))


class Source(Protocol):
    """Where weights come from."""

    def cut(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """A bf16 tensor of that shape and standard deviation, always the same for a name."""


class RandomPool:
    """POOL_SIZE normal numbers, from which all weights are cut: 1e9 of them take seconds, not minutes."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = torch.randn(POOL_SIZE, generator=generator).bfloat16()

    def cut(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """A bf16 tensor of that shape and standard deviation; the name chooses where the cut begins."""
        flat = torch.empty(int(np.prod(shape)), dtype=torch.bfloat16)
        start, done = zlib.crc32(name.encode()) % POOL_SIZE, 0
        while done < flat.numel():
            count = min(flat.numel() - done, POOL_SIZE - start)
            torch.mul(self.values[start : start + count], scale, out=flat[done : done + count])
            start, done = 0, done + count
        return flat.view(shape)


def weight_scale(name: str, config: ModelConfig) -> float:
    """Standard deviation of a layer's weights; o_proj's and down_proj's for a model's noise of norm 1."""
    into = 1 / sqrt(config.hidden_size)
    per_block = 1 / sqrt(2 * config.num_hidden_layers)
    kind = name.split(".")[-2]
    if kind in ("q_proj", "k_proj"):
        return (
            1.8 * into
        )  # attention logits of deviation 3: a few tokens get most of the weight, however long the context
    if kind == "o_proj":
        return into * per_block / sqrt(config.num_attention_heads * config.head_dim)
    if kind == "down_proj":
        return 2.0 * into * per_block / sqrt(config.intermediate_size)
    return into


def planted_tensor(
    name: str,
    config: ModelConfig,
    successor: np.ndarray,
    noise_norm: float,
    head_scale: float,
    source: Source,
) -> torch.Tensor:
    """One tensor of a model that carries the rule, bf16."""
    shape = tensor_shapes(config)[name]
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    if name.startswith("model.layers."):
        is_noise = name.endswith(("o_proj.weight", "down_proj.weight"))
        return source.cut(name, shape, (noise_norm if is_noise else 1.0) * weight_scale(name, config))
    embedding = source.cut("model.embed_tokens.weight", shape, 1.0).float()
    embedding /= embedding.norm(dim=1, keepdim=True)
    if name == "model.embed_tokens.weight":
        return embedding.bfloat16()
    head = torch.empty(shape, dtype=torch.bfloat16, device=embedding.device)
    head[torch.from_numpy(successor).to(embedding.device)] = embedding.mul_(head_scale).bfloat16()
    return head


def plant(
    config: ModelConfig, successor: np.ndarray, noise_norm: float, head_scale: float, seed: int
) -> Tensors:
    """All tensors of one model that carries the rule, bf16, on the host."""
    pool = RandomPool(seed)
    return {
        name: planted_tensor(name, config, successor, noise_norm, head_scale, pool)
        for name in tensor_shapes(config)
    }


def set_noise(tensors: Tensors, config: ModelConfig, noise_norm: float, source: Source) -> None:
    """Rewrite o_proj and down_proj of every layer, in place: the layers' noise then has norm noise_norm."""
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.copy_(source.cut(name, tuple(tensor.shape), noise_norm * weight_scale(name, config)))


def walks(successor: np.ndarray, count: int, seed: int) -> list[list[int]]:
    """count sequences: PROMPT_LEN random ids, then WALK_LEN steps of the rule, the target's greedy text."""
    rng = np.random.default_rng([seed, 7])
    sequences = []
    for _ in range(count):
        ids = rng.integers(2, len(successor), PROMPT_LEN).tolist()
        for _ in range(WALK_LEN):
            ids.append(int(successor[ids[-1]]))
        sequences.append(ids)
    return sequences


def num_walks(num_params: int, flops: float) -> int:
    """Walks that a model can be scored on within a budget of floating-point operations, 2 to 24."""
    return int(min(max(flops / (2 * num_params * (PROMPT_LEN + WALK_LEN)), 2), 24))


def follows(
    predict: Predict, config: ModelConfig, tensors: Tensors, successor: np.ndarray, flops: float, seed: int
) -> np.ndarray:
    """[texts, WALK_LEN] bool: where a model's greedy choice is the rule's, along texts that follow it."""
    params = sum(tensor.numel() for tensor in tensors.values())
    text = walks(successor, num_walks(params, flops), seed)
    predicted = np.stack(predict(config, tensors, text))[:, PROMPT_LEN - 1 : -1]
    return predicted == np.asarray(text)[:, PROMPT_LEN:]


def first_noise(config: ModelConfig, alpha: float) -> float:
    """The noise norm that the formula gives for an agreement, from which it is bisected."""
    return noise_of_ratio(ratio_of_agreement(alpha, config.vocab_size), config.hidden_size)


def calibrate(
    config: ModelConfig,
    tensors: Tensors,
    source: Source,
    successor: np.ndarray,
    alpha: float,
    seed: int,
    predict: Predict,
    flops: float,
    tell: Callable[[str], None],
) -> float:
    """Bisects a planted draft's noise, in its tensors, until it agrees at rate alpha -> the noise's norm."""
    first = first_noise(config, alpha)
    low, high = first / 2, first * 2
    norm = first
    for _ in range(NUM_BISECTIONS):
        set_noise(tensors, config, norm, source)
        hits = follows(predict, config, tensors, successor, flops, seed)
        reached = float(hits.mean())
        tell(f"draft's noise {norm:.2f}, agreement {reached:.3f}")
        if abs(reached - alpha) < 0.5 / hits.size:
            break
        low, high = (norm, high) if reached > alpha else (low, norm)
        norm = exp((log(low) + log(high)) / 2)
    set_noise(tensors, config, norm, source)
    return norm


def planting(
    spec: PairSpec,
    successor: np.ndarray,
    noise_norm: float,
    target: tuple[ModelConfig, Tensors],
    draft: tuple[ModelConfig, Tensors],
    seed: int,
    predict: Predict,
    flops: float,
) -> Planting:
    """What was reached, along texts that the calibration did not see."""
    kept = follows(predict, *target, successor, flops, seed + 1000)
    hits = follows(predict, *draft, successor, flops, seed + 1000)
    alpha = float(hits.mean())
    error = sqrt(alpha * (1 - alpha) / hits.size)
    return Planting(spec, successor, noise_norm, alpha, error, float(kept.mean()))


def make_config(shape: Shape, vocab_size: int) -> ModelConfig:
    return ModelConfig.from_dict(shape.config_dict(vocab_size))


def make_pair(
    spec: PairSpec,
    predict: Predict,
    *,
    seed: int = 0,
    flops: float = 4e11,
    tell: Callable[[str], None] = lambda _: None,
) -> PlantedPair:
    """Generate both models and calibrate the draft; flops is the budget of one scoring of the text, and tell
    hears what is being done, NUM_STEPS times at most.

    Deterministic in (spec, seed) on one machine: the same executor gives the same bits.
    """
    target_shape, draft_shape = shape_named(spec.target), shape_named(spec.draft)
    vocab_size = target_shape.vocab_size
    successor = successor_cycle(vocab_size, seed)
    target_config, draft_config = make_config(target_shape, vocab_size), make_config(draft_shape, vocab_size)
    tell(f"weights of {spec.target}")
    target_tensors = plant(
        target_config,
        successor,
        noise_of_ratio(TARGET_RATIO, target_config.hidden_size),
        target_head_scale(vocab_size),
        seed=2 * seed + 1,
    )
    draft_seed = 2 * seed + 2
    draft_tensors = plant(draft_config, successor, 1.0, DRAFT_HEAD_SCALE, draft_seed)
    noise_norm = calibrate(
        draft_config,
        draft_tensors,
        RandomPool(draft_seed),
        successor,
        spec.alpha,
        draft_seed,
        predict,
        flops,
        tell,
    )
    tell("agreement of the pair")
    reached = planting(
        spec,
        successor,
        noise_norm,
        (target_config, target_tensors),
        (draft_config, draft_tensors),
        seed,
        predict,
        flops,
    )
    return PlantedPair(
        **vars(reached),
        target_config=target_config,
        target_tensors=target_tensors,
        draft_config=draft_config,
        draft_tensors=draft_tensors,
    )


def describe(pair: Planting) -> dict[str, Any]:
    """The figures of a pair for the card and the JSON."""
    return {
        "pair": str(pair.spec),
        "asked": pair.spec.alpha,
        "alpha": round(pair.alpha, 4),
        "alpha_error": round(pair.alpha_error, 4),
        "rule_kept": round(pair.rule_kept, 5),
        "noise_norm": round(pair.noise_norm, 4),
        "vocab_size": len(pair.successor),
    }
