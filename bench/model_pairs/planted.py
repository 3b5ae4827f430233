"""Planted pairs: two models of real shapes and random weights that agree at a chosen rate, so that speed
can be measured at true size without a download. `planted:88m+8m@0.8` is a target of 88M, a draft of 8M,
agreement 0.8.

Does not know how fast anything runs, nor what a strategy is. Both models share the rule of planting.py. The
target gets r = 9, which follows the rule all but always: its greedy text walks the cycle, and no token comes
back within a whole vocabulary, so the text can't fall into a loop. The draft's n starts from the formula and
is bisected until the draft agrees at rate alpha along such text. Its misses come from the noise, which
depends on the token and, through attention made sharp, on the tokens before it: different positions miss as
good as independently.

At temperature 0.8 the target's c puts 0.95 of the mass on the successor; the draft's c is larger, a confident
draft, because a miss needs the draft's noise to outbid the rule and not to drown it.

The vocabulary of a pair is the target's; the draft's own is replaced by it. On a device the weights are made
there, by its own generator: nothing of their size passes through the host, another agreement costs a rewrite
of two matrices a layer, and a pair is not the same bits as on the host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import numpy as np
import torch

from bench.model_pairs.planting import (
    TARGET_RATIO,
    DeviceSource,
    PlantedTensors,
    RandomPool,
    Source,
    noise_of_ratio,
    ratio_of_agreement,
    set_noise,
    successor_cycle,
    target_head_scale,
)
from bench.model_pairs.shapes import config_of, shape_named
from bench.model_pairs.weight_views import torch_model
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.errors import ConfigError

Tensors = Mapping[str, torch.Tensor]
# (config, tensors, sequences of ids) -> the greedy next id after every token of every sequence.
Predict = Callable[[ModelConfig, Tensors, list[list[int]]], list[np.ndarray]]
Report = Callable[[str], None]

DRAFT_HEAD_SCALE = 6.0
PROMPT_LEN = 32  # random ids before the walk in a calibration sequence
WALK_LEN = 224
ALPHA_RANGE = (0.05, 0.98)
NUM_BISECTIONS = 7
NUM_STEPS = NUM_BISECTIONS + 2
HOST_FLOPS, DEVICE_FLOPS = 4e11, 4e13  # of one scoring of the text: a second on the slowest of these devices
TEXTS_AT_ONCE = 4  # of a forward over whole logits


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

    def to_dict(self) -> dict[str, Any]:
        """The figures of a pair for the report and the JSON."""
        return {
            "pair": str(self.spec),
            "asked": self.spec.alpha,
            "alpha": round(self.alpha, 4),
            "alpha_error": round(self.alpha_error, 4),
            "rule_kept": round(self.rule_kept, 5),
            "noise_norm": round(self.noise_norm, 4),
            "vocab_size": len(self.successor),
        }

    def note(self, where: str) -> str:
        """A line of the report. where: the device that made the weights."""
        return (
            f"planted pair, random weights made on {where}, vocabulary {len(self.successor)} (the target's): "
            f"greedy agreement {self.alpha:.3f} +- {self.alpha_error:.3f} along the target's text, "
            f"{self.spec.alpha} asked; the target keeps its rule {self.rule_kept:.2%} of the time"
        )


def random_prompts(vocab_size: int, count: int, length: int, seed: int) -> list[list[int]]:
    """count prompts of random ids [length]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab_size, length).tolist() for _ in range(count)]


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


@dataclass(frozen=True)
class Scoring:
    """How a model is scored on the rule's text. flops: the budget of one scoring."""

    successor: np.ndarray
    predict: Predict
    flops: float

    def hits(self, config: ModelConfig, tensors: Tensors, seed: int) -> np.ndarray:
        """[texts, WALK_LEN] bool: where a model's greedy choice is the rule's, along texts that follow it."""
        params = sum(tensor.numel() for tensor in tensors.values())
        text = walks(self.successor, num_walks(params, self.flops), seed)
        predicted = np.stack(self.predict(config, tensors, text))[:, PROMPT_LEN - 1 : -1]
        return predicted == np.asarray(text)[:, PROMPT_LEN:]


def first_noise(config: ModelConfig, alpha: float) -> float:
    """The noise norm that the formula gives for an agreement, from which it is bisected."""
    return noise_of_ratio(ratio_of_agreement(alpha, config.vocab_size), config.hidden_size)


def torch_predict(config: ModelConfig, tensors: Tensors, sequences: list[list[int]]) -> list[np.ndarray]:
    """Predict by plain torch over the tensors' own memory."""
    model = torch_model(config, dict(tensors))
    device = tensors["model.embed_tokens.weight"].device
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(sequences), TEXTS_AT_ONCE):
            ids = torch.tensor(sequences[start : start + TEXTS_AT_ONCE], device=device)
            found += list(model(ids).argmax(-1).cpu().numpy())
    return found


@dataclass(frozen=True)
class PairPlan:
    """Two models of a planted pair, before they exist. Deterministic in the spec and the seed on one machine:
    the same executor gives the same bits.
    """

    spec: PairSpec
    seed: int = 0
    device: torch.device | None = None  # whose generator makes the weights; None: they are made on the host

    @property
    def vocab_size(self) -> int:
        return shape_named(self.spec.target).vocab

    @property
    def configs(self) -> tuple[ModelConfig, ModelConfig]:
        target, draft = (shape_named(name) for name in (self.spec.target, self.spec.draft))
        return config_of(target), config_of(draft, self.vocab_size)

    @property
    def successor(self) -> np.ndarray:
        return successor_cycle(self.vocab_size, self.seed)

    @property
    def draft_seed(self) -> int:
        return 2 * self.seed + 2

    def source(self, seed: int) -> Source:
        return RandomPool(seed) if self.device is None else DeviceSource(seed, self.device)

    def target_tensors(self, ratio: float = TARGET_RATIO) -> PlantedTensors:
        """The target that every pair with this shape and seed shares. ratio: r of planting.py."""
        config, scale = self.configs[0], target_head_scale(self.vocab_size)
        noise, source = noise_of_ratio(ratio, config.hidden_size), self.source(2 * self.seed + 1)
        return PlantedTensors(config, self.successor, noise, scale, source)

    def draft_tensors(self) -> PlantedTensors:
        """The draft before its calibration."""
        config, source = self.configs[1], self.source(self.draft_seed)
        noise = first_noise(config, self.spec.alpha)
        return PlantedTensors(config, self.successor, noise, DRAFT_HEAD_SCALE, source)

    def calibrate(self, alpha: float, draft: Tensors, scoring: Scoring, report: Report) -> float:
        """Bisects the draft's noise, in its tensors, until it agrees at rate alpha -> the noise's norm."""
        config, source = self.configs[1], self.source(self.draft_seed)
        norm = first_noise(config, alpha)
        low, high = norm / 2, norm * 2
        for _ in range(NUM_BISECTIONS):
            set_noise(draft, config, norm, source)
            hits = scoring.hits(config, draft, self.draft_seed)
            reached = float(hits.mean())
            report(f"draft's noise {norm:.2f}, agreement {reached:.3f}")
            if abs(reached - alpha) < 0.5 / hits.size:
                break
            low, high = (norm, high) if reached > alpha else (low, norm)
            norm = exp((log(low) + log(high)) / 2)
        set_noise(draft, config, norm, source)
        return norm

    def replant(
        self,
        alpha: float,
        target: Tensors,
        draft: Tensors,
        *,
        predict: Predict = torch_predict,
        flops: float = DEVICE_FLOPS,
        report: Report = lambda _: None,
    ) -> Planting:
        """Gives the draft an agreement, in place: perhaps in views of the weights of an idle engine. The
        agreement reached is measured along texts that the calibration did not see.
        """
        scoring = Scoring(self.successor, predict, flops)
        norm = self.calibrate(alpha, draft, scoring, report)
        report("agreement of the pair")
        configs, seed = self.configs, self.seed + 1000
        kept, hits = scoring.hits(configs[0], target, seed), scoring.hits(configs[1], draft, seed)
        found = float(hits.mean())
        error = sqrt(found * (1 - found) / hits.size)
        spec = PairSpec(self.spec.target, self.spec.draft, alpha)
        return Planting(spec, self.successor, norm, found, error, float(kept.mean()))


@dataclass(frozen=True)
class PlantedPair(Planting):
    """A planting with both models, on the host."""

    configs: Sequence[ModelConfig]  # target, draft
    tensors: Sequence[Tensors]


def make_pair(
    spec: PairSpec,
    predict: Predict,
    *,
    seed: int = 0,
    flops: float = HOST_FLOPS,
    report: Report = lambda _: None,
) -> PlantedPair:
    """Generates both models and calibrates the draft. report: called with each step, NUM_STEPS at most."""
    plan = PairPlan(spec, seed)
    report(f"weights of {spec.target}")
    tensors = dict(plan.target_tensors()), dict(plan.draft_tensors())
    reached = plan.replant(spec.alpha, *tensors, predict=predict, flops=flops, report=report)
    return PlantedPair(**vars(reached), configs=plan.configs, tensors=tensors)
