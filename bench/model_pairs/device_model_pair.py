"""A pair on a device, with an engine on it, as a subject to be measured: from checkpoints, or planted there.

Knows how to run one program in one form on one prompt, how to have it timed, and which weights it runs; not
in which order programs are run, nor what is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.harness.device_peers import DeviceHuggingFace
from bench.harness.environment import ModelFigures
from bench.harness.measure import Program, Sample, Workload
from bench.model_pairs.device_planted import DevicePlan, check_device_memory
from bench.model_pairs.model_pair import HELD_OUT, PLANTED_PROMPT_LEN, SHIPPED, name_of, samples_of
from bench.model_pairs.planted import PairSpec, Planting, describe, random_prompts
from bench.model_pairs.prompts import read_prompts
from bench.model_pairs.weight_views import hugging_face_model, weight_views
from pearl_rt.config import Environment, ModelConfig
from pearl_rt.device_model import device_of
from pearl_rt.engine import Engine
from pearl_rt.errors import CheckpointError, ConfigError
from pearl_rt.metrics import RequestMetrics
from pearl_rt.tokenizer import Tokenizer

EAGER = "eager"  # the only form of the interpreter, op by op
TIMED_FORM = "events"  # the form whose steps can be timed one by one
SHORT_PROMPT_LEN = 8  # in the interpreter


@dataclass
class DeviceSubject:
    """A pair ready to be measured."""

    engine: Engine
    device: torch.device
    forms: tuple[str, ...]  # the first is swept
    configs: tuple[ModelConfig, ModelConfig]
    figures: tuple[ModelFigures, ModelFigures]
    prompts: list[list[int]]
    names: tuple[str, str]
    notes: list[str] = field(default_factory=list)
    plan: DevicePlan | None = None  # of a planted pair
    checkpoints: tuple[Path, Path] | None = None
    host_us: dict[str, list[float]] = field(default_factory=dict)  # program -> host time a round, each run

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def pair(self) -> str:
        return "+".join(self.names)

    def lanes(self) -> list[Any]:
        """Of every placement that was used."""
        return list(self.engine.lanes.values())

    def switch(self, name: str, value: Any) -> bool:
        """Sets what may be changed between requests (form, timed) where lanes have it; whether any has."""
        found = [lanes for lanes in self.lanes() if hasattr(type(lanes), name)]
        for lanes in found:
            setattr(lanes, name, value)
        return bool(found)

    def run(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        """A runner (see measure.Runner) over the engine, in the form that stands for the placement."""
        self.switch("form", program.placement)
        samples = samples_of(self.engine, program, workload, prompt)
        [metrics] = metrics_of(samples)
        for lanes in self.lanes():
            spent = getattr(lanes, "host_ns_per_round", None)
            if spent is not None and metrics.rounds > 0:
                self.host_us.setdefault(str(program), []).append(spent * 1e-3)
        return samples

    def timed_runs(self, program: Program, workload: Workload) -> list[RequestMetrics]:
        """The program over these prompts with timestamps around every step; nobody should time the whole."""
        self.switch("timed", True)
        counted = {name: list(values) for name, values in self.host_us.items()}
        try:
            if self.is_gpu:
                self.run(program, workload, 0)  # makes the events that timestamps are
            samples = [s for prompt in workload.firsts() for s in self.run(program, workload, prompt)]
        finally:
            self.switch("timed", False)
            self.host_us = counted  # a host that records timestamps too has more to do
        return [sample.metrics for sample in samples if sample.metrics is not None]

    def views(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The weights of target and draft, where the engine has them."""
        target, draft = (
            weight_views(config, model.weights)
            for config, model in zip(self.configs, (self.engine.target, self.engine.draft), strict=True)
        )
        return target, draft

    def plant(self, alpha: float, tell: Callable[[str], None]) -> Planting:
        """Gives the draft another agreement, in place."""
        assert self.plan is not None
        planting = self.plan.replant(alpha, *self.views(), tell)
        told = describe(planting)
        self.notes[:] = [
            f"planted pair, random weights made on {self.device}, vocabulary {told['vocab_size']} (the "
            f"target's): greedy agreement {told['alpha']:.3f} +- {told['alpha_error']:.3f} along the "
            f"target's text, {alpha} asked; the target keeps its rule {told['rule_kept']:.2%} of the time"
        ]
        return planting

    def hugging_face(self, *, compiled: bool) -> DeviceHuggingFace:
        """transformers over the very weights of the engine."""
        models = [hugging_face_model(*both) for both in zip(self.configs, self.views(), strict=True)]
        return DeviceHuggingFace(*models, compiled=compiled and self.is_gpu)


def device_named(name: str) -> torch.device:
    """Where the weights are: the interpreter's are on the host. Raises ConfigError, ResourceError."""
    return device_of("cpu" if name == "interpret" else name)


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """What both kinds of subject tell their engine."""
    told: dict[str, Any] = {"judge": "coupled", "dtype": options.dtype, "device": options.device}
    told["max_num_seqs"] = options.max_num_seqs
    if options.device == "interpret":
        return told
    if options.draft_device:
        told["draft_device"] = options.draft_device
    return told | {"form": options.forms[0]}


def forms_of(options: argparse.Namespace) -> tuple[str, ...]:
    return (EAGER,) if options.device == "interpret" else tuple(options.forms)


def free_memory(device: torch.device) -> int:
    """Bytes that could be taken on a GPU now."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def planted_on_device(options: argparse.Namespace) -> DeviceSubject:
    """The pair that --pair names, planted for no agreement yet: see DeviceSubject.plant."""
    spec = PairSpec.parse(options.pair)
    device = device_named(options.device)
    if options.device == "interpret":
        Environment.interpret_kernels()
    plan = DevicePlan(spec.target, spec.draft, options.seed, device)
    length = PLANTED_PROMPT_LEN if device.type == "cuda" else SHORT_PROMPT_LEN
    if device.type == "cuda":
        check_device_memory(
            plan, length + options.max_tokens, free_memory(device), num_caches=2 * options.max_num_seqs
        )
    engine = Engine(
        plan.target_config,
        plan.target_tensors(),
        plan.draft_config,
        plan.draft_tensors(spec.alpha),
        **engine_options(options),
    )
    configs = plan.target_config, plan.draft_config
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    figures = [
        ModelFigures.of(name, config, dtype)
        for name, config in zip((spec.target, spec.draft), configs, strict=True)
    ]
    prompts = random_prompts(plan.vocab_size, options.num_prompts, length, options.seed)
    return DeviceSubject(
        engine,
        device,
        forms_of(options),
        configs,
        (figures[0], figures[1]),
        prompts,
        (spec.target, spec.draft),
        plan=plan,
    )


def checkpoints_on_device(options: argparse.Namespace) -> DeviceSubject:
    """The pair of --target and --draft, or the shipped one."""
    target, draft = options.target or SHIPPED[0], options.draft or SHIPPED[1]
    if not (Path(target) / "config.json").exists():
        raise CheckpointError(f"there is no model in {target}: pass --target and --draft, or --pair")
    engine = Engine.from_pretrained(target, draft, **engine_options(options))
    configs = ModelConfig.from_pretrained(target), ModelConfig.from_pretrained(draft)
    prompts = options.prompts or HELD_OUT
    texts = read_prompts(prompts, options.num_prompts)
    tokenizer = Tokenizer.from_pretrained(target)
    names = name_of(target), name_of(draft)
    assert engine.draft is not None
    dtypes = [engine.target.dtype, engine.draft.dtype]
    figures = [ModelFigures.of(*figure) for figure in zip(names, configs, dtypes, strict=True)]
    return DeviceSubject(
        engine,
        device_named(options.device),
        forms_of(options),
        configs,
        (figures[0], figures[1]),
        [tokenizer.encode(text) for text in texts],
        names,
        [f"prompts: the first {len(texts)} of {name_of(prompts)}"],
        checkpoints=(Path(target), Path(draft)),
    )


def open_on_device(options: argparse.Namespace) -> DeviceSubject:
    """The subject that the command line asks for. Raises ConfigError, CheckpointError, ResourceError."""
    if options.draft_device == "cpu" and options.pair:
        raise ConfigError(
            "a planted draft is replanted where it is, on a GPU: pass checkpoints with a CPU draft"
        )
    return planted_on_device(options) if options.pair else checkpoints_on_device(options)


def metrics_of(samples: Sequence[Sample]) -> list[RequestMetrics]:
    """Those of our own programs."""
    return [sample.metrics for sample in samples if sample.metrics is not None]


def by_program(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each program's values."""
    return {name: sorted(values)[len(values) // 2] for name, values in found.items() if values}
