"""A prediction: what each goal of the kernels is expected to become on an H200. No GPU has run it.

    python -m bench.expected          half a minute with a warm Triton cache, two minutes without

Each case that a goal is about, and each step in 8 or 4 bits, is launched on tensors without memory. Launches
are counted; each kernel is compiled for the GPU, and its instructions, registers and shared memory are read
from the assembler's listing.
The bytes are those of the kernel bench (bench/kernel_cases/traffic.py). Then

    time = bytes / (copy x streamed) + launches x launch + sum of instructions x cycles / clock x exposed

with two values for what is not known: the better and the worse one. A goal is expected to be met if it is met
at the worse end, missed if it is missed at the better one, and open between. What the model lacks: trip
counts (a loop's body counts once: it waits for its bytes), caches, and launches that overlap. Prints a table
and the goals, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: our modules are bench.*, and none of them may shadow another's
    sys.path[0] = os.path.dirname(sys.path[0])

import torch

from bench.harness.command import add_shared, exit_code, finish
from bench.harness.environment import commit, now, version_of
from bench.harness.goals import GOALS, Goal, verdict, written
from bench.harness.table import format_table
from bench.kernel_cases import attention, linear, step, verify
from bench.kernel_cases.case import Spec
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.checks import interpreting
from pearl_rt.kernels.tools.compile import CompileCase, Compiled, compile_case
from pearl_rt.kernels.tools.record import case_of, launches_taken

TITLE = (
    "predicted, not measured: kernels and steps on an H200, from bytes, launches and compiled instructions"
)
FIGURES = ("us", "share")  # of goals that this can speak of
BETTER, WORSE = 0, 1
COLUMNS = (
    ("name", "case", "s"),
    ("launches", "launches", "d"),
    ("instructions", "instructions", "d"),
    ("mb", "MB", ".1f"),
    ("bytes_us", "us of bytes", ".1f"),
    ("launch_us", "of launches", ".1f"),
    ("path_us", "of instructions", ".1f"),
    ("us_better", "us, better", ".1f"),
    ("us_worse", "worse", ".1f"),
    ("pdl_better", "us with pdl", ".1f"),
    ("pdl_worse", "worse", ".1f"),
    ("share_better", "share of copy", ".0%"),
    ("share_worse", "worse", ".0%"),
)


@dataclass(frozen=True)
class Chip:
    """A GPU. Pairs are (better, worse): estimates, which the first run will replace. Together they give a
    launch of a decode step the 1.5 to 2.5 us that other engines measure in graphs.
    """

    name: str = "H200"
    arch: int = 90
    copy: float = 4.3e12  # bytes a second, read and written: others' measurements
    multiprocessors: int = 132
    clock: float = 1.98e9
    registers: int = 65536  # of a multiprocessor
    shared: int = 228 * 1024
    threads: int = 2048
    launch: tuple[float, float] = (0.7e-6, 1.3e-6)  # from one kernel of a graph to the next
    dependent_launch: tuple[float, float] = (0.3e-6, 0.6e-6)  # likewise, where the next one waits already
    cycles: tuple[float, float] = (1.2, 2.0)  # of an instruction of a program, all its warps side by side
    streamed: tuple[float, float] = (0.97, 0.92)  # of the copy's speed, once a kernel streams


@dataclass(frozen=True)
class Launch:
    """One launch of a case."""

    kernel: str
    programs: int
    threads: int  # of a program
    registers: int  # of a thread
    shared: int  # bytes of a program
    instructions: int

    @classmethod
    def of(cls, case: CompileCase, programs: int, compiled: Compiled) -> Launch:
        return cls(
            case.kernel.__name__,
            programs,
            case.num_warps * 32,
            compiled.registers,
            compiled.shared,
            compiled.instructions,
        )

    def resident(self, chip: Chip) -> int:
        """Programs that fit a multiprocessor; each has a KiB of shared memory for the driver."""
        by_registers = chip.registers // (max(self.registers, 1) * self.threads)
        return max(1, min(by_registers, chip.shared // (self.shared + 1024), chip.threads // self.threads))

    def exposed(self, chip: Chip) -> float:
        """How many times a program's instructions stand on the way: those of the first programs, and of each
        wave behind them the part that no resident neighbour hides.
        """
        resident = self.resident(chip)
        waves = math.ceil(self.programs / (chip.multiprocessors * resident))
        return 1 + (waves - 1) / resident

    def path(self, chip: Chip, end: int) -> float:
        """Seconds of its instructions."""
        return self.instructions * chip.cycles[end] / chip.clock * self.exposed(chip)


@dataclass(frozen=True)
class Expected:
    """A case, and what it is expected to take."""

    name: str
    tags: Mapping[str, Any]
    num_bytes: int
    launches: tuple[Launch, ...]
    chip: Chip = Chip()

    def parts(self, end: int) -> dict[str, float]:
        """Seconds of bytes, launches and instructions."""
        chip = self.chip
        return {
            "bytes": self.num_bytes / (chip.copy * chip.streamed[end]),
            "launches": len(self.launches) * chip.launch[end],
            "instructions": sum(launch.path(chip, end) for launch in self.launches),
        }

    def seconds(self, end: int) -> float:
        return sum(self.parts(end).values())

    def pdl_seconds(self, end: int) -> float:
        """With programmatic dependent launch, where each launch follows another."""
        saved = self.chip.launch[end] - self.chip.dependent_launch[end]
        return self.seconds(end) - len(self.launches) * saved

    def share(self, end: int) -> float:
        """Of the speed of a copy of so many bytes."""
        return self.num_bytes / self.chip.copy / self.seconds(end)

    def row(self, end: int) -> dict[str, Any]:
        """As goals read it."""
        figures = {"us": self.seconds(end) * 1e6, "share": self.share(end)}
        return {"tags": self.tags, "name": self.name, "status": "ok", "note": "", **figures}

    def to_dict(self) -> dict[str, Any]:
        parts = self.parts(BETTER)
        return {
            "name": self.name,
            "tags": dict(self.tags),
            "launches": len(self.launches),
            "kernels": dict(Counter(launch.kernel for launch in self.launches)),
            "instructions": sum(launch.instructions for launch in self.launches),
            "mb": self.num_bytes / 1e6,
            "bytes_us": parts["bytes"] * 1e6,
            "launch_us": parts["launches"] * 1e6,
            "path_us": parts["instructions"] * 1e6,
            "us_better": self.seconds(BETTER) * 1e6,
            "us_worse": self.seconds(WORSE) * 1e6,
            "pdl_better": self.pdl_seconds(BETTER) * 1e6,
            "pdl_worse": self.pdl_seconds(WORSE) * 1e6,
            "share_better": self.share(BETTER),
            "share_worse": self.share(WORSE),
        }


def num_programs(grid: Any, named: Mapping[str, Any]) -> int:
    """Of a launch, from its grid."""
    sizes = grid(named) if callable(grid) else grid
    return math.prod(sizes) if isinstance(sizes, (tuple, list)) else int(sizes)


class Compiler:
    """Compiles what is launched, each kernel once."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.compiled: dict[str, Compiled] = {}

    def expected(self, spec: Spec) -> Expected:
        """Launches the case on tensors without memory."""
        found: list[tuple[CompileCase, int]] = []

        def take(kernel: Any, *arguments: Any, grid: Any, **named: Any) -> None:
            case = case_of(spec.name, kernel, arguments, named)
            found.append((case, num_programs(grid, named)))

        with torch.device("meta"):
            job = spec.build(1)
            with launches_taken(take):
                job.ours.calls[0]()
        launches = tuple(Launch.of(case, programs, self.of(case)) for case, programs in found)
        return Expected(spec.name, spec.all_tags, spec.num_bytes, launches, self.chip)

    def of(self, case: CompileCase) -> Compiled:
        if case.key not in self.compiled:
            self.compiled[case.key] = compile_case(case, self.chip.arch)
        return self.compiled[case.key]


@dataclass(frozen=True)
class Outlook:
    """What is expected of a goal, and why."""

    goal: Goal
    word: str  # met, open, missed, or not predicted
    better: float | None = None
    worse: float | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        own = {"goal": self.goal.name, "figure": self.goal.figure, "limit": self.goal.limit}
        return own | {k: v for k, v in vars(self).items() if k != "goal"}

    def __str__(self) -> str:
        figure, sign = self.goal.figure, ">=" if self.goal.at_least else "<="
        ends = f"{written(figure, self.better)} to {written(figure, self.worse)}" if self.better else "-"
        limit = f"{sign} {written(figure, self.goal.limit)}"
        return f"{self.goal.name:<50}  {limit:>11}  {ends:>22}  {self.word:<13}  {self.why}"


def outlook(goal: Goal, cases: Iterable[Expected]) -> Outlook:
    """By the worst case at each end."""
    if goal.figure not in FIGURES:
        return Outlook(goal, "not predicted", why=f"{goal.figure} is a peer's figure: it has to run")
    known = list(cases)
    better, worse = (verdict(goal, [case.row(end) for case in known]) for end in (BETTER, WORSE))
    if better.found is None or worse.found is None:
        return Outlook(goal, "not predicted", why=worse.note)
    word = "met" if worse.met else "open" if better.met else "missed"
    case = next(case for case in known if case.name == worse.case)
    ends = [case.parts(end) for end in (BETTER, WORSE)]
    parts = ", ".join(f"{part} {ends[0][part] * 1e6:.1f} to {ends[1][part] * 1e6:.1f} us" for part in ends[0])
    why = f"{case.name}: {len(case.launches)} launches; {parts}"
    return Outlook(goal, word, better.found, worse.found, why)


def specs_of(goals: Sequence[Goal]) -> list[Spec]:
    """Every case of the kernel bench that one of these goals is about."""
    every = [spec for module in (step, verify, attention, linear) for spec in module.specs()]
    asked = [goal for goal in goals if goal.figure in FIGURES]
    return [spec for spec in every if any(goal.applies(spec.all_tags) for goal in asked)]


def predicted(json_out: Path | None) -> dict[str, Any]:
    """The whole: prints the report, returns the figures."""
    if interpreting():
        raise ConfigError("TRITON_INTERPRET is set: unset it, interpreted kernels are not compiled")
    chip = Chip()
    machine = {"date": now(), "commit": commit(), "torch": torch.__version__, "triton": version_of("triton")}
    print(TITLE)
    print(
        f"commit {machine['commit']}, torch {machine['torch']}, triton {machine['triton']}; {machine['date']}"
    )
    print(f"assumed: {asdict(chip)}")
    compiler = Compiler(chip)
    cases = [compiler.expected(spec) for spec in [*specs_of(GOALS), *step.coded_specs()]]
    rows = [case.to_dict() for case in cases]
    print(format_table(rows, COLUMNS))
    found = [outlook(goal, cases) for goal in GOALS]
    print("\ngoals of the kernels, as predicted for one H200 (better to worse end):", *found, sep="\n")
    figures = {
        "machine": machine,
        "predicted": True,
        "title": TITLE,
        "assumed": asdict(chip),
        "kernels_compiled": len(compiler.compiled),
        "rows": rows,
        "goals": [one.to_dict() for one in found],
        "outputs_equal": True,  # nothing has run
    }
    return finish(figures, json_out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Predicted: the goals of the kernels on an H200.")
    add_shared(parser, "json-out")
    options = parser.parse_args(argv)
    return exit_code("expected", lambda: predicted(options.json_out))


if __name__ == "__main__":
    sys.exit(main())
