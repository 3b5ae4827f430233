"""What a busy neighbour costs: a decode step on all cores beside processes that only compute.

It is held against one core alone, and against what the cores that are left would give. Knows steps of an
executor; no strategies.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.rounds.steps import CONTEXT
from pearl_rt._C import LlamaExecutor
from pearl_rt.backends.cpu import Model

BUSY = "while True:\n x = 0\n for i in range(1_000_000): x += i"
TURNS = 5
SECONDS_PER_TURN = 0.3
SETTLE_SECONDS = 0.2  # a process that has just begun has not yet its share of a core


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that only compute, as long as the block lasts."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", BUSY]))
        time.sleep(SETTLE_SECONDS if count else 0)
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def cores_left(cores: int, count: int) -> float:
    """Cores' worth of time that is left of `cores` beside `count` processes, if time is shared out fairly:
    each of the first ones takes half of a core.
    """
    return cores - count / 2 if count <= cores else cores * cores / (cores + count)


def rate_of(left: float, cores: int, one: float, all_cores: float) -> float:
    """Steps a second on so many cores' worth of time, between those of one core and of all of them."""
    if left <= 1 or cores == 1:
        return one * min(left, 1.0)
    return one + (all_cores - one) * (left - 1) / (cores - 1)


@dataclass(frozen=True)
class NeighbourCost:
    """One model's decode steps a second: means, so that what was waited for counts."""

    name: str
    cores: int
    count: int  # of neighbours
    alone: float  # on all cores
    one_alone: float  # on one core
    beside: float  # on all cores, beside the neighbours

    @property
    def of_one(self) -> float:
        """Share of one core alone."""
        return self.beside / self.one_alone

    @property
    def of_left(self) -> float:
        """Share of what the cores that are left would give."""
        left = cores_left(self.cores, self.count)
        return self.beside / rate_of(left, self.cores, self.one_alone, self.alone)


def steps_per_second(executor: LlamaExecutor, token: int) -> float:
    """Of steps over one token after CONTEXT tokens, which are in the cache."""
    executor.forward(0, [token], CONTEXT, 1)
    begin = time.perf_counter()
    count = 0
    while (taken := time.perf_counter() - begin) < SECONDS_PER_TURN:
        executor.forward(0, [token], CONTEXT, 1)
        count += 1
    return count / taken


def measure_neighbours(model: Model, name: str, cores: Sequence[int], count: int) -> NeighbourCost:
    """The median over turns, each of which measures all three."""
    executors = {size: model.executor(list(cores)[:size]) for size in {1, len(cores)}}
    ids = [(7 * i + 1) % model.config.vocab_size for i in range(CONTEXT)]
    for executor in executors.values():
        executor.forward(0, ids, 0, 1)
    found: dict[tuple[int, int], list[float]] = {}
    for _ in range(TURNS):
        for size, beside in ((1, 0), (len(cores), 0), (len(cores), count)):
            with neighbours(beside):
                found.setdefault((size, beside), []).append(steps_per_second(executors[size], ids[-1]))
    median = {case: statistics.median(rates) for case, rates in found.items()}
    return NeighbourCost(
        name, len(cores), count, median[len(cores), 0], median[1, 0], median[len(cores), count]
    )


def format_neighbours(costs: Sequence[NeighbourCost]) -> str:
    """A line a model."""
    return "\n".join(
        f"decode of {c.name} on {c.cores} cores beside {c.count} busy processes: {c.beside:.1f} steps/s, "
        f"{c.of_one:.2f} of one core alone ({c.one_alone:.1f}) and {c.of_left:.2f} of what "
        f"{cores_left(c.cores, c.count):.2f} cores would give; alone {c.alone:.1f}"
        for c in costs
    )
