"""The main job: how fast each program writes the same tokens, on this machine, now.

    python bench/latency.py                                  the pair in models/ on held-out prompts
    python bench/latency.py --pair planted:88m+8m@0.8        random weights of a true size
    python bench/latency.py --target DIR --draft DIR         anyone's checkpoints
    python bench/latency.py --device cuda --pair planted:8b+135m@0.9 --peers all
    python bench/latency.py --device interpret --pair planted:0.01m+0.01m@0.7 ...     the same path, no GPU

Prints a card, the executor's speed, one table a temperature, and as its last line the same figures as JSON.
Exit status 1, and no speed-ups, if any two programs wrote different tokens. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import torch
from tqdm import tqdm

from bench.harness.environment import bandwidth_card, format_card, machine_card
from bench.harness.exit_code import exit_code
from bench.harness.measure import Measured, Program, Workload, tokens_per_second
from bench.harness.peers import HuggingFace
from bench.harness.run import (
    GAMMAS,
    Section,
    cpu_menu,
    fit_workload,
    format_section,
    menus,
    num_runs,
    run_section,
)
from bench.model_pairs.model_pair import Subject, open_subject
from bench.model_pairs.planted import describe
from bench.rounds.steps import format_steps, measure_steps, to_dict
from bench.rounds.timeline import draw, write_chrome_trace
from pearl_rt.metrics import RequestMetrics
from pearl_rt.options import CAPTURED_FORMS, FORMS


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `device` is decided then."""
    parser = argparse.ArgumentParser(description="Latency of ar, sd, pearl and auto on the same tokens.")
    models = parser.add_argument_group("models")
    models.add_argument("--target", type=Path, help="checkpoint directory (default: models/target)")
    models.add_argument("--draft", type=Path, help="checkpoint directory (default: models/draft)")
    models.add_argument(
        "--pair", help="planted:TARGET+DRAFT@ALPHA, as planted:88m+8m@0.8, instead of checkpoints"
    )
    models.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    work = parser.add_argument_group("work")
    work.add_argument("--prompts", type=Path, help="text, or JSONL of HumanEval, GSM8K, MGSM or MT-bench")
    work.add_argument(
        "--alphas",
        type=float,
        nargs="+",
        help="agreements of a pair planted on a device, one after the other",
    )
    work.add_argument("--num-prompts", type=int, default=8)
    work.add_argument("--max-tokens", type=int, default=128)
    work.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    work.add_argument(
        "--judge",
        default="both",
        choices=("both", "coupled", "rejection"),
        help="at temperature > 0: one for all rows, or coupled, with rejection for the best sd and pearl too",
    )
    work.add_argument("--batch", type=int, default=1, help="prompts that run at once, on the CPU")
    work.add_argument("--gammas", type=int, nargs="+", default=list(GAMMAS))
    work.add_argument("--repeats", type=int, default=1)
    work.add_argument("--seed", type=int, default=0)
    work.add_argument("--budget", type=float, default=100.0, help="seconds of decoding to stay within, about")
    work.add_argument("--pearl-shared", action="store_true", help="pearl on shared cores too")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:N or interpret"
    )
    machine.add_argument("--draft-device", help="cuda:N, or cpu, for the draft of a target on a GPU")
    machine.add_argument(
        "--forms",
        nargs="+",
        default=CAPTURED_FORMS,
        choices=FORMS,
        help="how rounds are launched on a GPU; gamma is swept in the first",
    )
    machine.add_argument(
        "--rounds-ahead",
        type=int,
        nargs="*",
        metavar="N",
        help="on a GPU: rounds queued ahead that are tried, 1 to 32 (default: 1 2 3 4; none: no try)",
    )
    machine.add_argument("--isa", help="force an instruction set")
    machine.add_argument("--threads", type=int, help="cores to use")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--peers",
        choices=("hf", "all"),
        help="hf: Hugging Face generate on the same weights and prompts; all, on a GPU: compiled too, and "
        "vLLM, SGLang, gpt-fast if installed",
    )
    output.add_argument("--peer-prompts", type=int, default=2, help="prompts that peers run on a device")
    output.add_argument("--trace", type=Path, help="write a Chrome/Perfetto trace of one prompt's lanes")
    output.add_argument("--plot", type=Path, help="write a PNG of sd's lanes above pearl's")
    output.add_argument("--json-out", type=Path, help="write the JSON of the last line, indented")
    arguments = parser.parse_args(argv)
    if arguments.pair and (arguments.target or arguments.draft or arguments.prompts):
        parser.error(
            "--pair makes both models and their prompts: give it alone, or --target, --draft and --prompts"
        )
    if bool(arguments.target) != bool(arguments.draft):
        parser.error("--target and --draft go together")
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_device = arguments.device != "cpu"
    given = ("alphas", on_device and arguments.pair), ("draft_device", on_device), ("rounds_ahead", on_device)
    for name, needed in given:
        if getattr(arguments, name) and not needed:
            parser.error(
                f"--{name.replace('_', '-')} is for a device: pass --device cuda or interpret"
                + (" and --pair" if name == "alphas" else "")
            )
    if arguments.peers == "all" and not on_device:
        parser.error("--peers all is for a device: on a CPU pass --peers hf")
    if arguments.batch > 1 and (on_device or arguments.peers):
        parser.error(
            "--batch is for our programs on a CPU: on a device rounds are timed for one sequence, and "
            "bench/throughput.py runs peers in batches"
        )
    if arguments.batch > 1 and (arguments.trace or arguments.plot):
        parser.error("--trace and --plot draw the lanes of one sequence: drop --batch")
    if arguments.batch > arguments.num_prompts:
        parser.error(f"--batch {arguments.batch} is never full: pass 1 to --num-prompts")
    if not all(1 <= depth <= 32 for depth in arguments.rounds_ahead or []):
        parser.error(f"--rounds-ahead {arguments.rounds_ahead}: pass 1 to 32")
    arguments.max_num_seqs = arguments.batch
    for name in ("num_prompts", "peer_prompts", "max_tokens", "repeats", "batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(arguments, name)} would measure nothing")
    return arguments


def latency_on_device(options: argparse.Namespace) -> dict[str, Any]:
    """The main job where kernels run."""
    from bench.harness.device_latency import run_on_device
    from bench.model_pairs.device_model_pair import open_on_device
    from bench.model_pairs.planted import PairSpec

    if options.pair:
        options.alphas = options.alphas or [PairSpec.parse(options.pair).alpha]
    subject = open_on_device(options)
    with subject.engine:
        return run_on_device(options, subject)


def seconds_per_token(subject: Subject) -> float:
    """One decode step of ar, from a short run that also warms the engine."""
    [sample] = subject.run(Program("ar"), Workload(subject.prompts[:1], 12), 0)
    return max(sample.tpot, 1e-6)


def traced_runs(results: list[Measured]) -> dict[str, RequestMetrics]:
    """The first prompt of the best pearl, after the best sd's, on the same placement if it ran there."""
    found: dict[str, RequestMetrics] = {}
    judge = results[0].program.judge
    pearl = [r for r in results if r.program.strategy == "pearl" and r.program.judge == judge]
    best = max(pearl, key=tokens_per_second)
    serial = [r for r in results if r.program.strategy == "sd" and r.program.judge == judge]
    same = [r for r in serial if r.program.placement == best.program.placement]
    for result in (max(same or serial, key=tokens_per_second), best):
        metrics = result.samples[0].metrics
        assert metrics is not None
        found[
            f"{result.program.strategy}, {result.program.placement} cores, gamma {result.program.gamma}"
        ] = metrics
    return found


def run(options: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    """Everything after the models are loaded: prints the report, returns the figures."""
    from pearl_rt import _C

    isa = options.isa or _C.detect_isa()
    dtype = "bfloat16" if options.dtype == "auto" else options.dtype
    machine = machine_card(isa=isa, cpus=subject.cores, dtype=dtype)
    bandwidth = bandwidth_card(_C.CoreSet(subject.cores), subject.figures)
    print(format_card(machine, subject.figures, bandwidth), *subject.notes, sep="\n")
    engine = subject.engine
    models = [engine.target, engine.draft]
    speeds = [
        measure_steps(model, figures, subject.cores)
        for model, figures in zip(models, subject.figures, strict=True)
    ]
    print(format_steps(speeds), flush=True)

    menu = cpu_menu(split=len(subject.cores) > 1, pearl_shared=options.pearl_shared)
    by_temperature = menus(menu, options.temperature, options.judge)
    whole = Workload(subject.prompts, options.max_tokens, seed=options.seed, batch=options.batch)
    workload = fit_workload(
        whole, seconds_per_token(subject), options.budget, len(options.temperature), len(options.gammas)
    )
    sections: list[Section] = []
    with ExitStack() as stack:
        peer = None
        if options.peers:
            peer = HuggingFace(*stack.enter_context(subject.checkpoint_directories()), len(subject.cores))
            machine["transformers"] = peer.version
        bar = stack.enter_context(tqdm(total=0, unit="run", file=sys.stderr, dynamic_ncols=True))
        bar.total = sum(
            num_runs(
                by_temperature[temperature],
                options.gammas,
                workload,
                options.repeats,
                sampled=temperature > 0,
                num_peers=3 if peer is not None and temperature == 0 else 0,
            )
            for temperature in options.temperature
        )
        for temperature in options.temperature:
            section, results = run_section(
                subject.run,
                workload.at(temperature),
                gammas=tuple(options.gammas),
                menu=by_temperature[temperature],
                repeats=options.repeats,
                peer=peer,
                bar=bar,
            )
            if not sections and options.trace:
                write_chrome_trace(options.trace, traced_runs(results))
            if not sections and options.plot:
                draw(options.plot, traced_runs(results))
            sections.append(section)
            tqdm.write(f"\n{format_section(section)}", file=sys.stdout)
    figures = {
        "machine": machine,
        "bandwidth_gb_per_second": bandwidth,
        "models": [asdict(m) for m in subject.figures],
        "notes": subject.notes,
        "planted": describe(subject.planted) if subject.planted else None,
        "steps": to_dict(speeds),
        "sections": [section.to_dict() for section in sections],
        "outputs_equal": all(section.difference is None for section in sections),
    }
    print(json.dumps(figures))
    if options.json_out:
        options.json_out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)

    def measured() -> dict[str, Any]:
        if options.device != "cpu":
            return latency_on_device(options)
        subject = open_subject(options)
        with subject.engine:
            return run(options, subject)

    return exit_code("latency", measured)


if __name__ == "__main__":
    sys.exit(main())
