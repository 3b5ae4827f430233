"""The kernels, one by one and as whole decode steps: how near they come to the memory's speed and to peers.

    python bench/kernels.py              everything, within four minutes on an H100
    python bench/kernels.py --quick      the shapes of 1B and 8B, within one minute
    python bench/kernels.py --only verify

Prints the machine, a row a case as it is measured, what became of the goals, and as its last line the same as
JSON. Cases that a goal applies to run first; when the budget is spent the rest is left out, by name. Exit
status 1 if an output was wrong or a case failed (such a case has no figures), 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

from bench.harness.command import add_shared, finish, require_positive
from bench.harness.environment import copy_bandwidth, format_machine, gpu_environment, why_no_gpu
from bench.harness.goals import GOALS, Verdict, format_goals, verdict
from bench.kernel_cases.case import COLUMNS, Row, Spec, format_row, run_case
from bench.kernel_cases.timer import GraphTimer, Timer
from bench.kernel_cases.warmup import compile_share, num_workers, run_workers, share

BUDGET, QUICK_BUDGET = 220.0, 50.0  # seconds of cases, compilation included
REPEATS, QUICK_REPEATS = 15, 9
LARGE = 1 << 30
COMPILE_SHARE = 0.4  # of the budget at most
OK, RED, NO_GPU = 0, 1, 2
Emit = Callable[[str], None]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Kernels and decode steps against the copy bandwidth and peers."
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes, within a minute")
    parser.add_argument("--only", metavar="REGEX", help="the cases whose name matches")
    parser.add_argument(
        "--budget", type=float, help=f"seconds of cases ({BUDGET:.0f}; quick {QUICK_BUDGET:.0f})"
    )
    parser.add_argument(
        "--repeats", type=int, help=f"samples of each (median; {REPEATS}, quick {QUICK_REPEATS})"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and their bytes, and stop")
    parser.add_argument("--compile", metavar="I/N", help=argparse.SUPPRESS)  # a worker of warmup.py
    add_shared(parser, "json-out")
    arguments = parser.parse_args(argv)
    require_positive(parser, arguments, "repeats")
    if arguments.budget is None:
        arguments.budget = QUICK_BUDGET if arguments.quick else BUDGET
    if arguments.repeats is None:
        arguments.repeats = QUICK_REPEATS if arguments.quick else REPEATS
    return arguments


def all_specs() -> list[Spec]:
    """Every case, by room."""
    from bench.kernel_cases import attention as attention_cases
    from bench.kernel_cases import linear as linear_cases
    from bench.kernel_cases import step as step_cases
    from bench.kernel_cases import verify as verify_cases

    rooms = (verify_cases, step_cases, attention_cases, linear_cases)
    return [spec for room in rooms for spec in room.specs()]


def chosen(specs: Sequence[Spec], *, quick: bool, only: str | None) -> list[Spec]:
    """What to run, in order: cases that a goal applies to first, those that torch.compile works for last."""
    found = [s for s in specs if (s.quick or not quick) and (only is None or re.search(only, s.name))]

    def rank(spec: Spec) -> int:
        if any(goal.applies(spec.all_tags) for goal in GOALS) and not spec.tags.get("compiles"):
            return 0
        return 2 if spec.tags.get("compiles") else 1

    return sorted(found, key=rank)


def measure(
    specs: Sequence[Spec],
    timer: Timer,
    l2_bytes: int,
    bandwidth: float,
    *,
    repeats: int,
    budget: float,
    emit: Emit,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Row], list[Spec]]:
    """Runs the cases in order and emits a line for each; returns the rows and what was left out."""
    deadline = clock() + budget
    rows: list[Row] = []
    for i, spec in enumerate(specs):
        if clock() >= deadline:
            return rows, list(specs[i:])
        row = run_case(spec, timer, l2_bytes, bandwidth, repeats)
        rows.append(row)
        emit(format_row(row))
        if spec.num_bytes > LARGE:
            gc.collect()  # a whole model is gone before the next one comes
    return rows, []


def report(rows: Sequence[Row], left_out: Sequence[Spec]) -> tuple[list[Verdict], str]:
    """The verdicts on the goals, and everything that is said after the table."""
    figures = [row.to_dict() for row in rows]
    verdicts = [verdict(goal, figures, [s.all_tags for s in left_out]) for goal in GOALS]
    lines = []
    if left_out:
        counts = Counter(spec.op for spec in left_out)
        named = ", ".join(f"{op} {count}" for op, count in counts.items())
        lines += ["", f"left out for want of time, {len(left_out)} (names in the JSON): {named}"]
    red = [row for row in rows if row.status != "ok"]
    if red:
        lines += ["", f"RED, {len(red)}:", *(f"  {row.name}: {row.status}: {row.note}" for row in red)]
    lines += ["", "goals, stated for an H200:", format_goals(verdicts)]
    return verdicts, "\n".join(lines)


def run(options: argparse.Namespace, specs: Sequence[Spec]) -> dict[str, Any]:
    """Everything on the GPU: prints the report, returns the figures."""
    import torch

    from bench.kernel_cases.peers import installed

    torch.manual_seed(0)
    timer = GraphTimer()
    machine = gpu_environment()
    bandwidth = copy_bandwidth(timer)
    peers = installed()
    print(*format_machine(machine, {"copy": bandwidth / 1e9}), sep="\n")
    there = [
        f"torch {torch.__version__}",
        *(f"{name} {version}" for name, version in peers.items() if version),
    ]
    absent = [name for name, version in peers.items() if not version]
    print(f"peers: {', '.join(there)}; absent: {', '.join(absent) or 'none'}")
    print(f"{len(specs)} cases, median of {options.repeats}, cold L2\n\n{COLUMNS}", flush=True)
    arguments = [*(["--quick"] if options.quick else []), *(["--only", options.only] if options.only else [])]
    workers = min(num_workers(), len(specs))
    limit = COMPILE_SHARE * options.budget
    spent = run_workers(Path(__file__), arguments, workers, limit) if workers > 1 else 0.0
    rows, left_out = measure(
        specs,
        timer,
        timer.l2_bytes,
        bandwidth,
        repeats=options.repeats,
        budget=options.budget - spent,
        emit=lambda line: print(line, flush=True),
    )
    verdicts, text = report(rows, left_out)
    print(text, flush=True)
    after = copy_bandwidth(timer) if rows and rows[-1].status == "ok" else None  # a crash leaves no device
    if after is not None:
        print(f"\nmemory copied at {bandwidth / 1e9:.0f} GB/s before the cases, {after / 1e9:.0f} after them")
    return {
        "card": machine,
        "copy_gb_s": bandwidth / 1e9,
        "copy_gb_s_after": None if after is None else after / 1e9,
        "peers": peers,
        "rows": [row.to_dict() for row in rows],
        "goals": [v.to_dict() for v in verdicts],
        "compiled_ahead_s": round(spent, 1),
        "left_out": [spec.name for spec in left_out],
        "green": all(row.status == "ok" for row in rows),
    }


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    if not options.list:
        missing = why_no_gpu()
        if missing:
            print(f"kernels: {missing}: nothing was measured", file=sys.stderr)
            return NO_GPU
    specs = chosen(all_specs(), quick=options.quick, only=options.only)
    if options.list:
        print("\n".join(f"{spec.name:<46} {spec.num_bytes / 1e6:>10.2f} MB" for spec in specs))
        return OK
    if options.compile:
        index, count = map(int, options.compile.split("/"))
        compile_share(share(specs, index, count))
        return OK
    figures = run(options, specs)
    finish(figures, options.json_out)
    return OK if figures["green"] else RED


if __name__ == "__main__":
    sys.exit(main())
