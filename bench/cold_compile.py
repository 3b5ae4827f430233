"""What a GPU engine compiles before its first token where Triton's cache is empty, in CPU seconds.

    python bench/cold_compile.py             half a minute, without a GPU

The steps of a tiny bf16 pair of one layer each are launched on tensors without memory: prefill, `ar`, and
judge `rejection` with one window. What they would compile is compiled for sm_90, ptxas included, into an
empty cache. Then further windows are launched, and what they need more is compiled too. The launchers that a
C compiler makes of each kernel's signature are not in it. Prints a row for each kernel, the goals, and as its
last line the same as JSON.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import triton

from bench.harness.command import add_shared, exit_code, finish
from bench.harness.environment import commit, host_environment
from bench.harness.goals import COMPILE_GOALS, format_goals, verdict
from bench.harness.table import format_table
from bench.kernel_cases.pair_launches import TARGET, PairLaunches, Variant
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.checks import interpreting

VOCAB = 4992
FIRST = 3  # the window of the first rounds
FURTHER = (2, 4, 8)  # windows asked for later
COLUMNS = (
    ("name", "kernel", "s"),
    ("variants", "variants", "d"),
    ("cpu_s", "CPU s", ".2f"),
    ("share", "share", ".0%"),
)


def cpu_seconds() -> float:
    """Of this process and of the assemblers that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compiled(variants: Sequence[Variant]) -> list[tuple[str, float]]:
    """The CPU seconds of each, by name."""
    found = []
    for variant in variants:
        begun = cpu_seconds()
        triton.compile(variant.source, target=TARGET, options=variant.options)
        found.append((variant.name, cpu_seconds() - begun))
    return found


def rows_of(found: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """One for each kernel, the longest first, and their sum."""
    total = sum(seconds for _, seconds in found)
    by_name: dict[str, list[float]] = {}
    for name, seconds in found:
        by_name.setdefault(name, []).append(seconds)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return [
        {"name": name, "variants": len(own), "cpu_s": sum(own), "share": sum(own) / total}
        for name, own in [("all", [seconds for _, seconds in found]), *longest]
    ]


def measured(json_out: Path | None) -> dict[str, Any]:
    """The whole: prints the report, returns the figures."""
    if interpreting():
        raise ConfigError("TRITON_INTERPRET is set: unset it, interpreted kernels are not compiled")
    machine = host_environment(dtype="bfloat16") | {"commit": commit(), "triton": triton.__version__}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    pair = PairLaunches(VOCAB, max(FIRST, *FURTHER))
    seen = pair.launches.variants
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        pair.prefill(FIRST)
        pair.rounds(0, ("rejection",), (False,))
        pair.rounds(FIRST, ("rejection",), (False,))
        first = list(seen.values())
        compiled(first[:1])  # what is done once in a process
        triton.knobs.cache.dir = cache + "/cold"
        found = compiled(first)
        more = {}
        for gamma in FURTHER:
            before = set(seen)
            pair.rounds(gamma, ("rejection",), (False,))
            more[gamma] = compiled([seen[key] for key in seen.keys() - before])
    rows = rows_of(found)
    print(format_table(rows, COLUMNS))
    for gamma, further in more.items():
        seconds = sum(seconds for _, seconds in further)
        names = ", ".join(name for name, _ in further) or "nothing"
        print(f"a window of {gamma} later: {seconds:.2f} CPU s for {names}")
    judged = [
        {
            "tags": {"op": "compile", "later": gamma is not None},
            "name": "all" if gamma is None else f"gamma {gamma}",
            "status": "ok",
            "note": "",
            "cpu_s": sum(seconds for _, seconds in part),
        }
        for gamma, part in [(None, found), *more.items()]
    ]
    verdicts = [verdict(goal, judged) for goal in COMPILE_GOALS]
    print("\ngoals:", format_goals(verdicts), sep="\n")
    figures = {
        "machine": machine,
        "rows": rows,
        "windows_later": {str(gamma): part for gamma, part in more.items()},
        "goals": [one.to_dict() for one in verdicts],
        "outputs_equal": True,  # nothing has run
    }
    return finish(figures, json_out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What compiling a tiny pair's kernels costs, without a GPU.")
    add_shared(parser, "json-out")
    options = parser.parse_args(argv)
    return exit_code("cold_compile", lambda: measured(options.json_out))


if __name__ == "__main__":
    sys.exit(main())
