"""What is measured: a pair of models with its prompts and an engine for it, from checkpoints or planted, on
CPU cores, on a GPU, or in Triton's interpreter. In place of a draft there may be a lookup.

Knows how to run one program on one batch, how to have it timed, and which weights it runs; not in which order
programs are run, nor what is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.harness.environment import ROOT, ModelFigures, format_environment, measured_environment
from bench.harness.measure import Program, Sample, Workload, timed
from bench.harness.peers import HuggingFace, load_checkpoint
from bench.model_pairs.model_prompts import name_of, prompts_for
from bench.model_pairs.planted import (
    NUM_STEPS,
    PairPlan,
    PairSpec,
    PlantedPair,
    Planting,
    Report,
    Tensors,
    make_pair,
    random_prompts,
)
from bench.model_pairs.weight_views import hugging_face_file, hugging_face_model, weight_views
from pearl_rt.backends.cpu import Model, choose_cores
from pearl_rt.checkpoint.config import Environment, ModelConfig
from pearl_rt.device.model import DeviceModel, device_of
from pearl_rt.engine import Engine
from pearl_rt.errors import CheckpointError, ConfigError
from pearl_rt.types.metrics import RequestMetrics
from pearl_rt.types.sampling_params import SamplingParams

SHIPPED = ROOT / "models" / "target", ROOT / "models" / "draft"
NO_DRAFTS = ("self", "lookup", "none")  # what --draft may be besides a path
EAGER = "eager"  # the only form of the interpreter, op by op
PLANTED_PROMPT_LEN, INTERPRETED_PROMPT_LEN = 64, 8


@dataclass
class ModelPair:
    """A pair ready to be measured. Close its engine when done."""

    engine: Engine
    device: str  # cpu, interpret, cuda or cuda:N
    names: tuple[str, str]  # of target and draft, or of what drafts without one
    configs: tuple[ModelConfig, ...]  # of the models
    figures: tuple[ModelFigures, ...]
    prompts: list[list[int]]
    notes: list[str] = field(default_factory=list)  # lines for the report
    cores: list[int] = field(default_factory=list)  # on the CPU
    forms: tuple[str, ...] = ()  # of launching rounds, on a device; gamma is swept in the first
    planting: Planting | None = None  # of a planted pair, once it is calibrated
    plan: PairPlan | None = None  # on a device, of a planted pair
    checkpoints: tuple[Path, ...] | None = None
    tasks: list[str] = field(default_factory=list)  # of each prompt
    host_us: dict[str, list[float]] = field(default_factory=dict)  # program -> host time a round, each run

    @property
    def is_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def on_device(self) -> bool:
        """Kernels run it, compiled or interpreted."""
        return self.device != "cpu"

    @property
    def has_draft(self) -> bool:
        """A model drafts."""
        return len(self.configs) > 1

    @property
    def name(self) -> str:
        return "+".join(self.names)

    def lanes(self) -> list[Any]:
        """Of every placement that was used."""
        return list(self.engine.lanes.values())

    def switch(self, name: str, value: Any) -> None:
        """Sets what a GPU's lanes may change between requests: form, timed, rounds_ahead."""
        if self.is_gpu:
            for lanes in self.lanes():
                setattr(lanes, name, value)

    def run(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        """A runner (see measure.Runner) over the engine. A program's placement is a form on a device."""
        self.switch("form", program.placement)
        numbers = workload.together(prompt)
        params = SamplingParams(
            temperature=workload.temperature,
            max_tokens=workload.max_tokens,
            seed=workload.seed_of(prompt),
            ignore_eos=True,
        )
        outputs, seconds = timed(
            lambda: self.engine.generate(
                [list(workload.prompts[number]) for number in numbers],
                params,
                strategy=program.strategy,
                gamma=program.gamma or None,
                placement=None if self.on_device else program.placement,
                judge=program.judge,
            )
        )
        if self.is_gpu and outputs[0].metrics.rounds > 0:
            spent = [ns for ns in (lanes.host_ns_per_round for lanes in self.lanes()) if ns is not None]
            self.host_us.setdefault(str(program), []).extend(ns * 1e-3 for ns in spent)
        share = seconds / len(numbers)
        return [
            Sample(number, output.token_ids, share, output.metrics.ttft, output.metrics.tpot, output.metrics)
            for number, output in zip(numbers, outputs, strict=True)
        ]

    def measured_speed(self) -> tuple[float, float]:
        """Seconds of one decode step of ar, and to a mean prompt's first token, from a short run that also
        warms the engine.
        """
        program = Program("ar", self.forms[0]) if self.on_device else Program("ar")
        [sample] = self.run(program, Workload(self.prompts[:1], 12), 0)
        mean = sum(map(len, self.prompts)) / len(self.prompts)
        return max(sample.tpot, 1e-6), sample.ttft * mean / len(self.prompts[0])

    def timed_runs(self, program: Program, workload: Workload) -> list[RequestMetrics]:
        """The program over these prompts with timestamps around every step: not to time whole runs."""
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
        """The weights of target and draft, where an engine on the kernels has them."""
        models = self.engine.target, self.engine.draft
        target, draft = (
            weight_views(config, model.weights)
            for config, model in zip(self.configs, models, strict=True)
            if isinstance(model, DeviceModel)
        )
        return target, draft

    def replant(self, alpha: float, report: Report = lambda _: None) -> None:
        """Gives the draft on a device another agreement, in place."""
        assert self.plan is not None
        self.planting = self.plan.replant(alpha, *self.views(), report=report)
        self.notes[:] = [self.planting.note(str(self.plan.device))]

    def hugging_face(self, *, compiled: bool = False) -> HuggingFace:
        """transformers over the same weights, on a device the very memory; as many threads as we use."""
        if self.on_device:
            models = [hugging_face_model(*both) for both in zip(self.configs, self.views(), strict=True)]
            return HuggingFace(*models, compiled=compiled and self.is_gpu)
        if self.checkpoints is not None:
            models = [
                hugging_face_file(path) if path.suffix == ".gguf" else load_checkpoint(path)
                for path in self.checkpoints
            ]
            models += [None] * (2 - len(models))
        else:
            assert isinstance(self.planting, PlantedPair)
            made = zip(self.configs, self.planting.tensors, strict=True)
            models = [hugging_face_model(config, dict(tensors)) for config, tensors in made]
        return HuggingFace(*models, num_threads=len(self.cores))


class NativePredict:
    """Greedy next ids by the executor itself, in bf16: planted.Predict."""

    def __init__(self, cores: list[int], isa: str | None) -> None:
        self.cores, self.isa = cores, isa

    def __call__(self, config: ModelConfig, tensors: Tensors, sequences: list[list[int]]) -> list[np.ndarray]:
        longest = max(len(ids) for ids in sequences)
        model = Model.pack(
            config, tensors, name="planted", dtype="bfloat16", isa=self.isa, max_model_len=longest
        )
        executor = model.executor(self.cores)
        return [executor.forward(0, ids, 0, len(ids)).argmax(axis=1) for ids in sequences]


def weights_device(name: str) -> torch.device:
    """Where the weights are: the interpreter's are on the host. Raises ConfigError, ResourceError."""
    return device_of("cpu" if name == "interpret" else name)


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of every engine. Each prompt is fed whole, however often it is measured: no blocks are
    shared, and a lookup reads no earlier answers, unless that is asked for, as it would read the very answer.
    """
    shared = {
        "judge": "coupled",
        "prefix_caching": getattr(options, "prefix_caching", False),
        **{
            key: getattr(options, key)
            for key in ("dtype", "weights", "draft_weights", "device", "max_num_seqs")
        },
    }
    if options.device == "cpu":
        pool = getattr(options, "lookup_pool", 0)
        if getattr(options, "draft", None) == "self":
            shared["skip_layers"] = options.skip_layers or None  # of a target with a mask token none
        shared["draft_parallel"] = getattr(options, "in_one_pass", True)
        shared["draft_stop"] = getattr(options, "draft_stop", "none")
        shared["draft_lookup"] = getattr(options, "draft_lookup", None)
        shared["candidates"] = getattr(options, "several", 1)
        return shared | {"num_threads": options.threads, "isa": options.isa, "lookup_pool": pool}
    if options.device == "interpret":
        return shared
    own = {"draft_device": options.draft_device} if options.draft_device else {}
    return shared | own | {"form": options.forms[0]}


def forms_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Of launching rounds; none on the CPU."""
    return {"cpu": (), "interpret": (EAGER,)}.get(options.device, tuple(options.forms))


def figures_of(
    names: Sequence[str], configs: Sequence[ModelConfig], dtypes: Sequence[str], options: argparse.Namespace
) -> tuple[ModelFigures, ...]:
    weights = options.weights, options.draft_weights
    return tuple(ModelFigures.of(*each) for each in zip(names, configs, dtypes, weights, strict=False))


def packed_figures(figures: Sequence[ModelFigures], engine: Engine) -> tuple[ModelFigures, ...]:
    """The same, with the bytes that the packed weights of the CPU have: a checkpoint may hold codes."""
    models = zip(figures, (engine.target, engine.draft), strict=False)
    return tuple(
        replace(own, bytes_per_step=model.weights.weight_bytes) if isinstance(model, Model) else own
        for own, model in models
    )


def cpu_dtype(options: argparse.Namespace) -> str:
    """The dtype of weights that no checkpoint decides."""
    return "bfloat16" if options.dtype == "auto" else str(options.dtype)


def plant_on_cpu(options: argparse.Namespace, spec: PairSpec) -> PlantedPair:
    """Both models, calibrated by the executor itself."""
    predict = NativePredict(choose_cores(options.threads), options.isa)
    with tqdm(total=NUM_STEPS, desc="planting", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:

        def report(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        return make_pair(spec, predict, seed=options.seed, report=report)


def plan_on_device(options: argparse.Namespace, spec: PairSpec) -> PairPlan:
    """A pair whose weights are made where they will be run."""
    device = weights_device(options.device)
    if options.device == "interpret":
        Environment.interpret_kernels()
    return PairPlan(spec, options.seed, device)


def from_plan(options: argparse.Namespace, spec: PairSpec) -> ModelPair:
    """The pair that --pair names, with prompts of random ids. On a device it is planted for no agreement yet:
    see ModelPair.replant.
    """
    length = INTERPRETED_PROMPT_LEN if options.device == "interpret" else PLANTED_PROMPT_LEN
    planting, plan = None, None
    if options.device == "cpu":
        planting = plant_on_cpu(options, spec)
        (target, draft), tensors = planting.configs, planting.tensors
    else:
        if options.draft_device == "cpu":
            raise ConfigError(
                "a planted draft is replanted where it is, on a GPU: pass checkpoints with a CPU draft"
            )
        plan = plan_on_device(options, spec)
        (target, draft), tensors = plan.configs, (plan.target_tensors(), plan.draft_tensors())
    engine = Engine(target, tensors[0], draft, tensors[1], **engine_options(options))
    names = spec.target, spec.draft
    dtype = {"cpu": cpu_dtype(options), "interpret": "float32"}.get(options.device, "bfloat16")
    return ModelPair(
        engine,
        options.device,
        names,
        (target, draft),
        figures_of(names, (target, draft), [dtype] * 2, options),
        random_prompts(target.vocab_size, options.num_prompts, length, options.seed),
        [planting.note("the host")] if planting else [],
        cores_of(options),
        forms_of(options),
        planting=planting,
        plan=plan,
    )


def cores_of(options: argparse.Namespace) -> list[int]:
    return choose_cores(options.threads) if options.device == "cpu" else []


def asked_models(options: argparse.Namespace) -> tuple[tuple[Path, ...], str]:
    """The paths of --target and --draft, and what drafts without one: a target alone looks up. The shipped
    pair if nothing is asked for.
    """
    drafts = str(options.draft) if options.draft is not None else "lookup" if options.target else ""
    target = Path(options.target or SHIPPED[0])
    if drafts in NO_DRAFTS:
        return (target,), drafts
    return (target, Path(drafts or SHIPPED[1])), ""


def from_checkpoints(options: argparse.Namespace) -> ModelPair:
    """The models of --target and --draft, or the shipped pair."""
    paths, drafts = asked_models(options)
    if not paths[0].exists():
        raise CheckpointError(
            f"there is no model in {paths[0]}: pass --target and --draft, or --pair planted:88m+8m@0.8"
        )
    prompts = prompts_for(paths[0], options.prompts, options.num_prompts)
    draft = str(paths[1]) if len(paths) > 1 else drafts
    begin = time.perf_counter()
    engine = Engine.from_pretrained(paths[0], draft, **engine_options(options))
    loaded = f"engine loaded, with its step times measured, in {time.perf_counter() - begin:.1f} s"
    models = [model for model in (engine.target, engine.draft) if model is not None]
    names = [name_of(path) for path in paths]
    configs = tuple(model.config for model in models[: len(paths)])
    figures = figures_of(names, configs, [model.dtype for model in models], options)
    return ModelPair(
        engine,
        options.device,
        (names[0], names[1] if len(names) > 1 else drafts),
        configs,
        packed_figures(figures, engine),
        prompts.token_ids,
        [prompts.note, loaded],
        cores_of(options),
        forms_of(options),
        checkpoints=paths,
        tasks=prompts.tasks,
    )


def open_pair(options: argparse.Namespace) -> ModelPair:
    """The pair that the command line asks for. Raises ConfigError, CheckpointError, ResourceError."""
    return from_plan(options, PairSpec.parse(options.pair)) if options.pair else from_checkpoints(options)


def report_environment(pair: ModelPair, options: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints the machine that the pair runs on -> the figures that every report begins with."""
    machine, bandwidth = measured_environment(
        pair.device, pair.figures, cores=pair.cores, isa=options.isa, dtype=cpu_dtype(options)
    )
    print(format_environment(machine, pair.figures, bandwidth), flush=True)
    return {
        "machine": machine,
        "bandwidth_gb_per_second": bandwidth,
        "models": [asdict(model) for model in pair.figures],
        "notes": pair.notes,
    }
