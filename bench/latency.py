"""The main job: how fast each program writes the same tokens, on this machine, now.

    python bench/latency.py                                  the pair in models/ on held-out prompts
    python bench/latency.py --pair planted:88m+8m@0.8        random weights of a true size
    python bench/latency.py --target DIR --draft DIR         checkpoints in the Hugging Face layout
    python bench/latency.py --device cuda --pair planted:8b+135m@0.9 --peers all
    python bench/latency.py --device interpret --pair planted:0.01m+0.01m@0.7 ...     the same path, no GPU

Prints the environment, the executor's speed, one table a temperature, and as its last line the same figures
as JSON. Exit status 1, and no speed-ups, if any two programs wrote different tokens. Progress goes to
stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import torch
from tqdm import tqdm

from bench.harness.command import MODELS, add_shared, exit_code, finish, require_positive
from bench.harness.environment import ceiling
from bench.harness.goals import ROUND_GOALS, format_goals, verdict
from bench.harness.measure import Measured, Workload, tokens_per_second
from bench.harness.menu import GAMMAS, Menu, cpu_menu, device_menu, fit_workload, menus, num_runs
from bench.harness.peers import Peers, engine_peers
from bench.harness.run import Run, format_run
from bench.model_pairs.model_pair import EAGER, ModelPair, open_pair, report_environment
from bench.rounds.neighbours import format_neighbours, measure_neighbours
from bench.rounds.pair_run import goal_rows, run_pair
from bench.rounds.round_times import SKIPPED_ROUNDS
from bench.rounds.rounds_ahead import DEPTHS, try_depths
from bench.rounds.steps import format_steps, measure_steps
from bench.rounds.timeline import draw, write_chrome_trace
from pearl_rt.backends.cpu import Model
from pearl_rt.strategy.engine_options import CAPTURED_FORMS, FORMS
from pearl_rt.types.metrics import RequestMetrics

OF_ENGINE = ("device", "form", "rounds_ahead", "capture", "dtype", "weights", "isa", "max_model_len")  # stats


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `device` is decided then."""
    parser = argparse.ArgumentParser(description="Latency of ar, sd, pearl and auto on the same tokens.")
    add_shared(parser.add_argument_group("models"), *MODELS)
    work = parser.add_argument_group("work")
    counts = {"num_prompts": 8, "max_tokens": 128}
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
    work.add_argument("--gammas", type=int, nargs="+", default=list(GAMMAS))
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
        choices=("hf", "all"),
        help="hf: Hugging Face generate on the same weights and prompts; all, on a GPU: compiled too, and "
        "vLLM, SGLang, gpt-fast if installed",
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
    if arguments.neighbours is not None and on_device:
        parser.error("--neighbours is for the CPU: on a device the host's cores only queue rounds")
    arguments.max_num_seqs = arguments.batch
    positive = ("num-prompts", "peer-prompts", "max-tokens", "repeats", "batch", "neighbours")
    require_positive(parser, arguments, *positive)
    return arguments


def traced_runs(results: list[Measured]) -> dict[str, RequestMetrics]:
    """The first prompt of the best pearl, after the best sd's, on the same placement if it ran there."""
    judge = results[0].program.judge
    by = {
        s: [r for r in results if r.program.kind[0] == s and r.program.judge == judge]
        for s in ("sd", "pearl")
    }
    best = max(by["pearl"], key=tokens_per_second)
    same = [r for r in by["sd"] if r.program.placement == best.program.placement]
    chosen = max(same or by["sd"], key=tokens_per_second), best
    names = [f"{r.program.strategy}, {r.program.placement} cores, gamma {r.program.gamma}" for r in chosen]
    return {name: r.metrics[0] for name, r in zip(names, chosen, strict=True)}


def pictures_of(run: Run, results: list[Measured], pair: ModelPair) -> dict[str, RequestMetrics]:
    """A run of sd, and of pearl below it; on a device those whose steps were timed."""
    if run.device is None:
        return traced_runs(results)
    form, times = pair.forms[0], run.device.times
    names = [next(n for n in times if n.startswith(f"{s}/{form}")) for s in ("sd", "pearl")]
    return {f"{name}, {form}": run.device.runs[name][0] for name in names}


def draw_pictures(options: argparse.Namespace, runs: dict[str, RequestMetrics]) -> None:
    """The files of --trace and --plot; a picture needs rounds behind the first ones."""
    if options.trace:
        write_chrome_trace(options.trace, runs)
    if options.plot and min(metrics.rounds for metrics in runs.values()) > SKIPPED_ROUNDS:
        draw(options.plot, runs)
    elif options.plot:
        print("no picture: its runs have too few rounds", file=sys.stderr)


def fitted(options: argparse.Namespace, pair: ModelPair, num_parts: int) -> Workload:
    """What is asked for, or what the budget allows of it. The interpreter has no budget."""
    asked = Workload(pair.prompts, options.max_tokens, seed=options.seed, batch=options.batch)
    if pair.device == "interpret":
        return asked
    return fit_workload(asked, pair.seconds_per_token(), options.budget, num_parts, len(options.gammas))


def asked_peers(options: argparse.Namespace, pair: ModelPair) -> Peers | None:
    """Those that --peers asks for."""
    if not options.peers:
        return None
    peers = Peers(num_prompts=options.peer_prompts)
    try:
        peers.hugging_face = pair.hugging_face(compiled=options.peers == "all")
    except ModuleNotFoundError as error:
        if not pair.on_device:
            raise
        peers.absent["hf"] = f"{error.name} is not installed"
    if options.peers == "all":
        peers.engines, absent = engine_peers(pair.checkpoints[0] if pair.checkpoints else None)
        peers.absent |= absent
    return peers


class MainJob:
    """Every agreement and temperature of a pair, printed as each is done."""

    def __init__(self, options: argparse.Namespace, pair: ModelPair, highest: float | None) -> None:
        """highest: tok/s of ar at the memory's speed."""
        self.options, self.pair, self.highest = options, pair, highest
        self.runs: list[Run] = []
        self.goal_rows: list[dict[str, Any]] = []
        self.ahead: dict[str, Any] | None = None

    def run_all(
        self, workload: Workload, menus: dict[float, Menu], alphas: Sequence[float | None]
    ) -> str | None:
        """All of it -> the version of transformers, if it ran."""
        options, pair = self.options, self.pair
        peers = asked_peers(options, pair)
        with tqdm(total=0, unit="run", file=sys.stderr, dynamic_ncols=True) as bar:
            count = partial(
                num_runs, repeats=options.repeats, num_peers=3 if peers and not pair.on_device else 0
            )
            counts = [count(menu, options.gammas, workload.at(at)) for at, menu in menus.items()]
            bar.total = len(alphas) * sum(counts)
            for alpha in alphas:
                if alpha is not None:
                    pair.replant(alpha, lambda what: bar.set_postfix_str(f"planting: {what}"))
                if pair.on_device:
                    tqdm.write("\n" + "\n".join(pair.notes), file=sys.stdout)
                for temperature, menu in menus.items():
                    run, results = run_pair(
                        pair,
                        workload.at(temperature),
                        gammas=tuple(options.gammas),
                        repeats=options.repeats,
                        peers=peers,
                        bar=bar,
                        menu=menu,
                    )
                    self.keep(run, results, workload.at(temperature), bar)
        return peers.hugging_face.version if peers and peers.hugging_face else None

    def keep(self, run: Run, results: list[Measured], workload: Workload, bar: tqdm[Any]) -> None:
        """Prints one run; of the first one also the pictures, and rounds queued ahead."""
        options, pair, is_first = self.options, self.pair, not self.runs
        self.runs.append(run)
        tqdm.write(f"\n{format_run(run)}", file=sys.stdout)
        if is_first and (options.trace or options.plot):
            draw_pictures(options, pictures_of(run, results, pair))
        if run.device is None:
            return
        run.device.runs.clear()
        self.goal_rows += goal_rows(run, pair.names, self.highest)
        depths = DEPTHS if options.rounds_ahead is None else tuple(options.rounds_ahead)
        if is_first and depths and pair.is_gpu and pair.forms[0] != EAGER:
            self.ahead, rows = try_depths(pair, run, workload, depths, bar)
            self.goal_rows += rows

    def figures(self) -> dict[str, Any]:
        """Of the JSON; prints the goals."""
        equal = all(run.difference is None for run in self.runs)
        own = {"sections": [run.to_dict() for run in self.runs], "outputs_equal": equal}
        planted = self.pair.planting
        if not self.pair.on_device:
            return own | {"planted": planted.to_dict() if planted else None}
        verdicts = [verdict(goal, self.goal_rows) for goal in ROUND_GOALS] if self.pair.is_gpu else []
        if verdicts:
            print(f"\ngoals, stated for one H100:\n{format_goals(verdicts)}")
        return own | {
            "ceiling_tokens_per_second": self.highest,
            "planted": planted.to_dict() if planted else None,
            "engine": {key: value for key, value in self.pair.engine.stats().items() if key in OF_ENGINE},
            "rounds_ahead": self.ahead,
            "goals": [v.to_dict() for v in verdicts],
            "outputs_equal": equal and (self.ahead is None or self.ahead["difference"] is None),
        }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The whole: prints the report, returns the figures."""
    pair = open_pair(options)
    with pair.engine:
        figures = report_environment(pair, options)
        alphas: list[float | None] = [None]
        if pair.on_device:
            menu = device_menu(pair.forms)
            alphas = list(options.alphas or [pair.plan.spec.alpha]) if pair.plan else alphas
        else:
            print(*pair.notes, sep="\n")
            models = [m for m in (pair.engine.target, pair.engine.draft) if isinstance(m, Model)]
            both = list(zip(models, pair.figures, strict=True))
            speeds = [measure_steps(model, own, pair.cores) for model, own in both]
            print(format_steps(speeds), flush=True)
            figures["steps"] = [asdict(speed) for speed in speeds]
            if options.neighbours:
                costs = [measure_neighbours(m, own.name, pair.cores, options.neighbours) for m, own in both]
                print(format_neighbours(costs), flush=True)
                figures["neighbours"] = [
                    asdict(c) | {"of_one": c.of_one, "of_left": c.of_left} for c in costs
                ]
            menu = cpu_menu(split=len(pair.cores) > 1, pearl_shared=options.pearl_shared)
        by_temperature = menus(menu, options.temperature, options.judge)
        job = MainJob(options, pair, ceiling(pair.figures, figures["bandwidth_gb_per_second"]))
        workload = fitted(options, pair, len(alphas) * len(by_temperature))
        transformers = job.run_all(workload, by_temperature, alphas)
        if transformers:
            figures["machine"]["transformers"] = transformers
        return finish(figures | job.figures(), options.json_out)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    return exit_code("latency", lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
