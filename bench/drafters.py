"""What each kind of draft is worth on one target: for each task, greedy and sampled.

    python bench/drafters.py                                          SmolLM2-135M-Instruct, models/smollm2
    python bench/drafters.py --target models/target --draft models/draft       and a draft model of its own
        --bits 8                                                      weights of 8 or 16 bits, not 4
    python bench/drafters.py --prompts FILE                           prompts of Spec-Bench, HumanEval, ..
        --skip-layers 2 3 --exit models/exit --stops adaedl marginal  more rows
        --parallel models/parallel                                    a draft that fills windows in one pass
        --diffusion models/diffusion                                  a draft that fills them in a few passes
        --eagle3 models/head                                          a head that reads the target
        --candidates 2 4                                              several windows of a sequence
        --peers llama.cpp openvino hf                                 and theirs, by `make peers`
        --plot docs/drafters.png                                      the rows as a picture

A row is a kind of draft and its window: none (`ar`), lookup in prompt and answer, lookup in earlier answers
too, the model of --draft, with windows that end early by each of --stops too, and with each of --candidates
windows of a sequence, the target without --skip-layers, the exit layer of --exit, the drafts of --parallel
and --diffusion, each of these behind a lookup too, the head of --eagle3, and what `auto` chooses beside each
of them, which looks up earlier answers too. Peers write the same prompts greedily, plain and with what they
look up; their tokens may differ, and how far they are ours is said. Columns: memory beside the target; the
draft's minutes of training, where a training.json has them; tokens that a round makes final; of the windows,
the share that was looked up; of the drafts judged at each place of a window, the share that stood;
milliseconds of a round to draft and to score and judge; and how many times faster than `ar` text is written
behind its first token, over all prompts, and with the tokens a round over those of a task. All rows must
write the tokens of `ar` (sampled: by judge `coupled`), or no figure is printed and the status is 1. The last
line is the same as JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

from tqdm import tqdm

from bench.harness.bars import draw_bars
from bench.harness.command import add_shared, exit_code, finish, require_positive
from bench.harness.measure import (
    Measured,
    Program,
    Runner,
    Sample,
    Workload,
    by_position,
    first_difference,
    measure,
    tokens_per_round,
)
from bench.harness.peers import OUTSIDE, Peer, Peered, PeerGroup
from bench.harness.run import agreement_text, peer_agreement
from bench.harness.table import format_table
from bench.model_pairs.minutes import trained_minutes
from bench.model_pairs.model_pair import ModelPair, open_pair, report_environment
from bench.model_pairs.published import DRAFTS, WIDER, UnreachableError, published_model, widened
from bench.outside.setup import outside_peers
from bench.rounds.draft_rows import (
    DIFFUSION,
    EAGLE3,
    EARLIER,
    EXIT,
    LOOKUP,
    MODEL,
    PARALLEL,
    SELF,
    Row,
    beside,
    chained,
    chosen,
    directories,
    rows_of,
    stopped,
)
from pearl_rt.errors import CheckpointError
from pearl_rt.strategy.engine_options import EngineOptions
from pearl_rt.types.metrics import RequestMetrics

PLACES = 5  # of a window that the table shows
COLUMNS = (
    ("name", "draft", "s"),
    ("gamma", "gamma", "d"),
    ("extra_mb", "MB", ".2f"),
    ("minutes", "minutes trained", ".0f"),
    ("tokens_per_round", "tok/round", ".2f"),
    ("by_lookup", "by lookup", ".2f"),
    ("accepted_at", "stood at place 1, 2, ..", "s"),
    ("draft_ms", "draft ms", ".3f"),
    ("verify_ms", "verify ms", ".2f"),
    ("x_ar", "x ar", ".2f"),
)


@dataclass
class Engines:
    """A pair for each kind of draft, on the same target and prompts."""

    pairs: dict[str, ModelPair] = field(default_factory=dict)
    minutes: dict[str, float | None] = field(default_factory=dict)  # of training
    peers: PeerGroup | None = None

    def run(self, program: Program, workload: Workload, prompt: int) -> list[Sample]:
        """A runner (see measure.Runner)."""
        assert isinstance(program, Row)
        return self.pairs[program.kind_of_draft].run(program, workload, prompt)

    def extra_bytes(self, row: Row) -> int:
        """Memory beside the target's weights: a draft's weights, or the indices of a lookup."""
        pair = self.pairs[row.kind_of_draft]
        if row.strategy == "ar":
            return 0
        draft = pair.engine.draft
        weights = 0 if draft is None else int(draft.weights.memory_bytes)  # type: ignore[attr-defined]
        return weights + sum(lanes.drafter_bytes for lanes in pair.lanes())


def open_engines(options: argparse.Namespace, stack: ExitStack) -> Engines:
    """One for each kind: an engine has one drafter. Earlier answers are those of its own row alone."""
    engines = Engines()
    pool = EngineOptions().lookup_pool
    kinds: dict[str, dict[str, Any]] = {
        LOOKUP: {"draft": LOOKUP, "lookup_pool": 0},
        EARLIER: {"draft": LOOKUP, "lookup_pool": pool},
    }
    if options.draft:
        kinds[MODEL] = {"lookup_pool": 0}
    if options.skip_layers is not None:
        kinds[SELF] = {"draft": SELF}
    for kind, directory in directories(options).items():
        if directory is not None:
            kinds[kind] = {"draft": directory, "in_one_pass": kind != EXIT}
    behind = [kind for kind in (MODEL, SELF, EXIT, PARALLEL, DIFFUSION) if kind in kinds]
    kinds |= {chained(kind): kinds[kind] | {"draft_lookup": True} for kind in behind}
    kinds |= {stopped(stop): {"draft_stop": stop} for stop in options.stops}
    kinds |= {beside(count): {"several": count} for count in options.candidates}
    with_auto = [kind for kind in (LOOKUP, MODEL, *directories(options)) if kind in kinds]
    kinds |= {chosen(kind): kinds[kind] | {"lookup_pool": pool} for kind in with_auto}
    for kind, own in kinds.items():
        pair = engines.pairs[kind] = open_pair(argparse.Namespace(**vars(options) | own))
        stack.enter_context(pair.engine)
        drafts = (pair.checkpoints or ())[1:]
        engines.minutes[kind] = trained_minutes(drafts[0]) if drafts else None
    return engines


def places_of(tasks: Sequence[str]) -> dict[str, list[int]]:
    """The prompts of each task."""
    return {task: [n for n, own in enumerate(tasks) if own == task] for task in dict.fromkeys(tasks)}


def decoding(result: Measured, prompts: Sequence[int]) -> float:
    """Seconds behind the first tokens."""
    return sum(s.tpot * (len(s.token_ids) - 1) for s in result.samples if s.prompt in prompts)


def milliseconds(metrics: Sequence[RequestMetrics], lane: str, ops: Sequence[str]) -> float | None:
    """Of these ops, a round."""
    rounds = sum(m.rounds for m in metrics)
    spent = sum(r.end_ns - r.begin_ns for m in metrics for r in m.trace if r.lane == lane and r.op in ops)
    return spent * 1e-6 / rounds if rounds else None


def figures_of(result: Measured, ar: Measured, engines: Engines) -> dict[str, Any]:
    """One row, all prompts and each task."""
    tasks = engines.pairs[LOOKUP].tasks
    everything, places = range(len(tasks)), places_of(tasks)
    metrics = result.metrics
    shares = by_position(metrics)
    row = result.program
    assert isinstance(row, Row)
    looked_up, sampled = (sum(getattr(m, n).windows for m in metrics) for n in ("looked_up", "sampled"))

    def over(prompts: Sequence[int]) -> dict[str, float]:
        own = [s.metrics for s in result.samples if s.prompt in prompts and s.metrics is not None]
        return {
            "x_ar": decoding(ar, prompts) / decoding(result, prompts),
            "tokens_per_round": tokens_per_round(own),
        }

    by_task = {task: over(prompts) for task, prompts in places.items()}
    return {
        "name": row.name,
        "gamma": row.gamma or None,
        "extra_mb": engines.extra_bytes(row) / 1e6,
        "minutes": engines.minutes.get(row.kind_of_draft),
        "by_lookup": looked_up / (looked_up + sampled) if looked_up + sampled else None,
        "accepted_at": " ".join(f"{share:.2f}" for share in shares[:PLACES]) or None,
        "accepted_per_position": shares,
        "draft_ms": milliseconds(metrics, "draft", ("draft",)) if row.strategy != "ar" else None,
        "verify_ms": milliseconds(metrics, "target", ("score", "verify")),
        **over(everything),
        "by_task": by_task,
    }


def peer_row(result: Measured, ar: Measured, tasks: Sequence[str]) -> dict[str, Any]:
    """The same of a peer, as far as it can be told from outside; and how far its tokens are ours."""
    by_task = {
        task: {"x_ar": decoding(ar, each) / decoding(result, each)} for task, each in places_of(tasks).items()
    }
    return {
        "name": str(result.program),
        "gamma": result.program.gamma or None,
        "x_ar": decoding(ar, range(len(tasks))) / decoding(result, range(len(tasks))),
        "by_task": by_task,
        "agreement": peer_agreement(ar, result),
    }


def words_of(by_task: dict[str, dict[str, float]]) -> dict[str, str]:
    """The cells of the tasks."""
    return {
        task: ", ".join(f"{own[name]:.2f}" for name in ("x_ar", "tokens_per_round") if name in own)
        for task, own in by_task.items()
    }


def section(
    options: argparse.Namespace, engines: Engines, workload: Workload, bar: tqdm[Any]
) -> dict[str, Any]:
    """All rows at one temperature: runs everything, compares tokens, and only then speeds."""
    tasks = engines.pairs[LOOKUP].tasks
    programs: list[Program] = list(rows_of(options))
    runner: Runner = engines.run
    peers = engines.peers if workload.temperature == 0 else None
    if peers is not None:
        programs += peers.programs(0)
        runner = Peered(engines.run, peers)
    everything = measure(runner, programs, workload, progress=lambda _: bar.update())
    results = [result for result in everything if isinstance(result.program, Row)]
    others = [result for result in everything if not isinstance(result.program, Row)]
    difference = first_difference(results)
    how = "greedy" if workload.temperature == 0 else f"T = {workload.temperature:g}, coupled"
    counts = f"{len(workload.prompts)} prompts x {workload.max_tokens} tokens, past any end of text"
    lines = [f"\n{how}: {counts}"]
    rows: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    if difference is None:
        for result in results:
            rows.append(figures_of(result, results[0], engines))
        theirs = [peer_row(result, results[0], tasks) for result in others]
        columns = [*COLUMNS, *((task, task, "s") for task in dict.fromkeys(tasks))]
        unknown = dict.fromkeys(name for name, _, _ in COLUMNS)
        lines += [format_table([unknown | row | words_of(row["by_task"]) for row in rows + theirs], columns)]
        lines.append("all rows of ours wrote the tokens of ar; of each task: x ar, tokens a round")
        lines += [agreement_text(row["agreement"]) for row in theirs]
        lines += [f"{name}: {why}" for name, why in (peers.absent if peers is not None else {}).items()]
    else:
        lines.append(f"OUTPUTS DIFFER, so no figures: {difference}")
    tqdm.write("\n".join(lines), file=sys.stdout)
    return {
        "temperature": workload.temperature,
        "num_prompts": len(workload.prompts),
        "num_tokens": workload.max_tokens,
        "rows": rows,
        "peers": theirs,
        "difference": str(difference) if difference else None,
    }


def peers_of(options: argparse.Namespace, pair: ModelPair) -> PeerGroup | None:
    """Those that --peers asks for."""
    if not options.peers:
        return None
    own: dict[str, Peer] = {"hf": pair.hugging_face()} if "hf" in options.peers else {}
    names = [name for name in options.peers if name != "hf"]
    target = pair.checkpoints[0] if pair.checkpoints else None
    outside, absent = outside_peers(names, target, len(pair.cores), pair.prompts)
    return PeerGroup(own | outside, absent)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What each kind of draft is worth, by task.")
    names = ("target", "draft", "dtype", "weights", "draft-weights", "prompts", "num-prompts", "max-tokens")
    add_shared(parser, *names, "seed", "isa", "threads", "json-out", num_prompts=28, max_tokens=96)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument(
        "--gammas", type=int, nargs="+", help="windows of each kind (lookup: 3 7 15, model: 2 4 8)"
    )
    parser.add_argument("--stops", nargs="+", default=[], help="rules that end windows of --draft early")
    parser.add_argument("--candidates", type=int, nargs="+", default=[], help="windows of --draft, 2 to 8")
    parser.add_argument(
        "--skip-layers",
        type=int,
        nargs="*",
        help="that the target leaves out as a draft; none: of a target with a mask token",
    )
    parser.add_argument("--exit", type=Path, help="an exit layer of the target: token by token")
    parser.add_argument("--parallel", type=Path, help="a draft with a pard_token")
    parser.add_argument("--diffusion", type=Path, help="a draft with a diffusion_mask_token")
    parser.add_argument("--eagle3", type=Path, help="an EAGLE-3 head of the target")
    parser.add_argument("--peers", nargs="+", choices=("hf", *OUTSIDE), default=[], help="greedy rows too")
    parser.add_argument("--plot", type=Path, help="PNG of the greedy rows; needs matplotlib")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(4, *WIDER),
        default=4,
        help="of SmolLM2's weights, where no target is named",
    )
    options = parser.parse_args(argv)
    if options.draft and not options.target:
        parser.error("--draft wants --target too")
    if (options.stops or options.candidates) and not options.draft:
        parser.error("--stops and --candidates want --draft too")
    require_positive(parser, options, "num-prompts", "max-tokens")
    options.device, options.pair, options.forms, options.max_num_seqs = "cpu", None, [], 1
    return options


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: prints the tables, returns the figures."""
    if options.target is None:
        try:
            options.target = published_model()
            if options.bits in WIDER:
                options.target = widened(options.target, options.bits)
        except UnreachableError as error:
            shipped = "--target models/target --draft models/draft"
            raise CheckpointError(f"{error}: pass {shipped} to measure the pair in models/") from None
        for kind in (EXIT, PARALLEL, EAGLE3):
            if getattr(options, kind) is None:
                setattr(options, kind, DRAFTS / kind)
    sections = []
    with tqdm(unit="run", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        for number, temperature in enumerate(options.temperature):
            with ExitStack() as stack:  # of each temperature its own, so that no answer was written before
                engines = open_engines(options, stack)
                pair = engines.pairs[LOOKUP]
                if number == 0:
                    figures = report_environment(pair, options)
                    print(*pair.notes, sep="\n", flush=True)
                if temperature == 0:
                    engines.peers = peers_of(options, pair)
                    if engines.peers is not None:
                        stack.callback(engines.peers.close)
                workload = Workload(pair.prompts, options.max_tokens, temperature, options.seed)
                sections.append(section(options, engines, workload, bar))
    equal = all(part["difference"] is None for part in sections)
    if options.plot is not None and sections[0]["rows"]:
        draw_bars(options.plot, sections[0]["rows"] + sections[0]["peers"])
    return finish(figures | {"sections": sections, "outputs_equal": equal}, options.json_out)


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    return exit_code("drafters", lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
