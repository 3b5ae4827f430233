"""The command line of the main job, bench/latency.py. Knows names and what goes together; opens nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.harness.command import MODELS, add_shared, require_positive
from bench.harness.menu import GAMMAS
from bench.harness.peers import OUTSIDE
from pearl_rt.strategy.engine_options import CAPTURED_FORMS, FORMS

FOR_PAIR = {"num_prompts": 8, "max_tokens": 128, "gammas": GAMMAS}
FOR_LOOKUP = {"num_prompts": 48, "max_tokens": 64, "gammas": (3, 7, 15)}  # its windows are limits
LOOKUP = (Path("lookup"),)


def fill(options: argparse.Namespace, counts: dict[str, Any]) -> None:
    """Sets those of these that were not asked for."""
    for name, count in counts.items():
        if getattr(options, name) is None:
            setattr(options, name, count)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `device` is decided then."""
    parser = argparse.ArgumentParser(description="Latency of ar, sd, pearl and auto on the same tokens.")
    add_shared(parser.add_argument_group("models"), *MODELS)
    work = parser.add_argument_group("work")
    counts: dict[str, Any] = {"num_prompts": None, "max_tokens": None}
    add_shared(work, "prompts", "num-prompts", "max-tokens", "repeats", "seed", **counts)
    work.add_argument(
        "--alphas",
        type=float,
        nargs="+",
        help="agreements of a pair planted on a device, one after the other",
    )
    work.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    work.add_argument(
        "--judge",
        default="both",
        choices=("both", "coupled", "rejection"),
        help="at temperature > 0: one for all rows, or coupled, with rejection for the best sd and pearl too",
    )
    work.add_argument("--batch", type=int, default=1, help="prompts that run at once, on the CPU")
    work.add_argument(
        "--gammas", type=int, nargs="+", help="windows that are tried (default: by the drafter)"
    )
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
    machine.add_argument(
        "--neighbours",
        type=int,
        metavar="N",
        help="on the CPU: what a decode step costs beside N processes that only compute",
    )
    add_shared(machine, "isa", "threads")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--peers",
        nargs="+",
        default=[],
        choices=("hf", "llama.cpp", "openvino", "all"),
        help="hf: Hugging Face generate on the same weights and prompts; llama.cpp, openvino: the same GGUF "
        "file, after `make peers`; all, on a GPU: hf, compiled too, and vLLM, SGLang, gpt-fast if installed",
    )
    output.add_argument("--peer-prompts", type=int, default=2, help="prompts that peers run on a device")
    output.add_argument("--trace", type=Path, help="write a Chrome/Perfetto trace of one prompt's lanes")
    output.add_argument("--plot", type=Path, help="write a PNG of sd's lanes above pearl's")
    add_shared(output, "json-out")
    arguments = parser.parse_args(argv)
    if arguments.pair and (arguments.target or arguments.draft or arguments.prompts):
        parser.error(
            "--pair makes both models and their prompts: give it alone, or --target, --draft and --prompts"
        )
    if arguments.draft and not arguments.target:
        parser.error("--draft wants --target too: a target alone drafts by lookup")
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_device = arguments.device != "cpu"
    arguments.asked = {name: getattr(arguments, name) for name in FOR_PAIR}
    looks_up = not (on_device or arguments.pair) and (
        not arguments.target or arguments.draft in (None, *LOOKUP)
    )
    fill(arguments, FOR_LOOKUP if looks_up else FOR_PAIR)
    given = ("alphas", on_device and arguments.pair), ("draft_device", on_device), ("rounds_ahead", on_device)
    for name, needed in given:
        if getattr(arguments, name) and not needed:
            parser.error(
                f"--{name.replace('_', '-')} is for a device: pass --device cuda or interpret"
                + (" and --pair" if name == "alphas" else "")
            )
    if "all" in arguments.peers and not on_device:
        parser.error("--peers all is for a device: on a CPU pass --peers hf llama.cpp openvino")
    if on_device and set(arguments.peers) & set(OUTSIDE):
        parser.error(f"--peers {' '.join(OUTSIDE)} are for a CPU: pass --device cpu, or --peers hf or all")
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
    if arguments.neighbours is not None and on_device:
        parser.error("--neighbours is for the CPU: on a device the host's cores only queue rounds")
    arguments.max_num_seqs = arguments.batch
    positive = ("num-prompts", "peer-prompts", "max-tokens", "repeats", "batch", "neighbours")
    require_positive(parser, arguments, *positive)
    return arguments
