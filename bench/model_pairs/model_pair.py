"""What is measured: a pair of models with its prompts and an engine for it, from checkpoints or planted.

Knows how to run one program on one prompt with pearl_rt; not in which order programs are run, nor what is
printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.harness.environment import ModelFigures
from bench.harness.measure import Program, Sample, Workload, timed
from bench.model_pairs.planted import NUM_STEPS, PairSpec, PlantedPair, Tensors, describe, make_pair
from bench.model_pairs.prompts import read_prompts
from bench.rounds.steps import pinned_to
from pearl_rt.config import ModelConfig
from pearl_rt.engine import Engine
from pearl_rt.errors import CheckpointError
from pearl_rt.lane import Model, choose_cores
from pearl_rt.sampling_params import SamplingParams
from pearl_rt.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "target", ROOT / "models" / "draft"
HELD_OUT = ROOT / "models" / "heldout" / "prompts.jsonl"
PLANTED_PROMPT_LEN = 64


@dataclass
class Subject:
    """A pair ready to be measured. Close it when done."""

    engine: Engine
    figures: tuple[ModelFigures, ModelFigures]
    prompts: list[list[int]]
    cores: list[int]
    notes: list[str] = field(default_factory=list)  # lines for the card
    planted: PlantedPair | None = None
    checkpoints: tuple[Path, Path] | None = None

    def run(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        """A runner (see measure.Runner) over the engine."""
        return samples_of(self.engine, program, workload, prompt, placement=program.placement)

    @contextmanager
    def checkpoint_directories(self) -> Iterator[tuple[Path, Path]]:
        """(target, draft) as directories; a planted pair is written to a temporary one."""
        if self.checkpoints is not None:
            yield self.checkpoints
            return
        assert self.planted is not None
        with tempfile.TemporaryDirectory(prefix="planted-") as directory:
            yield self.planted.save(Path(directory))


def samples_of(
    engine: Engine, program: Program, workload: Workload, prompt: int, **options: Any
) -> list[Sample]:
    """One call of generate() for the batch that begins with a prompt. options: more of its arguments."""
    params = SamplingParams(
        temperature=workload.temperature,
        max_tokens=workload.max_tokens,
        seed=workload.seed + prompt,
        ignore_eos=True,
    )
    numbers = workload.together(prompt)
    outputs, seconds = timed(
        lambda: engine.generate(
            [list(workload.prompts[number]) for number in numbers],
            params,
            strategy=program.strategy,
            gamma=program.gamma or None,
            judge=program.judge,
            **options,
        )
    )
    share = seconds / len(numbers)
    return [
        Sample(number, output.token_ids, share, output.metrics.ttft, output.metrics.tpot, output.metrics)
        for number, output in zip(numbers, outputs, strict=True)
    ]


class NativePredict:
    """Greedy next ids by the executor itself, in bf16: pairs.Predict."""

    def __init__(self, cores: list[int], isa: str | None) -> None:
        self.cores, self.isa = cores, isa

    def __call__(self, config: ModelConfig, tensors: Tensors, sequences: list[list[int]]) -> list[np.ndarray]:
        longest = max(len(ids) for ids in sequences)
        model = Model.pack(
            config, tensors, name="planted", dtype="bfloat16", isa=self.isa, max_model_len=longest
        )
        executor = model.executor(self.cores)
        with pinned_to(self.cores[0]):
            return [executor.forward(0, ids, 0, len(ids)).argmax(axis=1) for ids in sequences]


def planted_subject(options: argparse.Namespace) -> Subject:
    """The pair that --pair names, with prompts of random ids."""
    cores = choose_cores(options.threads)
    spec = PairSpec.parse(options.pair)
    with tqdm(total=NUM_STEPS, desc="planting", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:

        def tell(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        pair = make_pair(spec, NativePredict(cores, options.isa), seed=options.seed, tell=tell)
    engine = Engine(
        pair.target_config,
        pair.target_tensors,
        pair.draft_config,
        pair.draft_tensors,
        judge="coupled",
        device="cpu",
        dtype=options.dtype,
        num_threads=options.threads,
        isa=options.isa,
        max_num_seqs=options.max_num_seqs,
    )
    told = describe(pair)
    notes = [
        f"planted pair, random weights, vocabulary {told['vocab_size']} (the target's): greedy agreement "
        f"{told['alpha']:.3f} +- {told['alpha_error']:.3f} along the target's text, {pair.spec.alpha} asked"
    ]
    dtype = "bfloat16" if options.dtype == "auto" else options.dtype
    return Subject(
        engine,
        (
            ModelFigures.of(pair.spec.target, pair.target_config, dtype),
            ModelFigures.of(pair.spec.draft, pair.draft_config, dtype),
        ),
        pair.prompts(options.num_prompts, PLANTED_PROMPT_LEN, options.seed),
        cores,
        notes,
        planted=pair,
    )


def checkpoint_subject(options: argparse.Namespace) -> Subject:
    """The pair of --target and --draft, or the shipped one."""
    target, draft = options.target or SHIPPED[0], options.draft or SHIPPED[1]
    prompts = options.prompts or HELD_OUT
    tokenizer = Tokenizer.from_pretrained(target)
    texts = read_prompts(prompts, options.num_prompts)
    engine = Engine.from_pretrained(
        target,
        draft,
        judge="coupled",
        device="cpu",
        dtype=options.dtype,
        num_threads=options.threads,
        isa=options.isa,
        max_num_seqs=options.max_num_seqs,
    )
    configs = ModelConfig.from_pretrained(target), ModelConfig.from_pretrained(draft)
    dtypes = [c.torch_dtype if options.dtype == "auto" else options.dtype for c in configs]
    names = [name_of(p) for p in (target, draft)]
    return Subject(
        engine,
        (ModelFigures.of(names[0], configs[0], dtypes[0]), ModelFigures.of(names[1], configs[1], dtypes[1])),
        [tokenizer.encode(text) for text in texts],
        choose_cores(options.threads),
        [f"prompts: the first {len(texts)} of {name_of(prompts)}"],
        checkpoints=(target, draft),
    )


def name_of(path: Path) -> str:
    """A path as a reader should see it: relative to the repository if inside it, else its last part."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else resolved.name


def open_subject(options: argparse.Namespace) -> Subject:
    """The subject that the command line asks for; CheckpointError says how to get one if there is none."""
    if options.pair:
        return planted_subject(options)
    if not options.target and not os.path.exists(SHIPPED[0] / "config.json"):
        raise CheckpointError(
            f"there is no model in {SHIPPED[0]}: pass --target and --draft, or --pair planted:88m+8m@0.8"
        )
    return checkpoint_subject(options)
