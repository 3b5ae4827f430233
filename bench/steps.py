"""The executor's own speed: decode steps over 1, 8 and 16 tokens, and what share of the memory's speed they
reach.

A step is timed from outside, `forward` to logits, at a context of CONTEXT tokens. Knows no strategies.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bench.card import ModelFigures

CONTEXT = 256
ROWS = (1, 8, 16)
SECONDS_PER_SIZE = 0.6


@dataclass(frozen=True)
class StepSpeed:
    """One model on one set of cores."""

    name: str
    cores: int
    milliseconds: dict[int, float]  # rows -> median step
    gigabytes_per_second: float  # weights read by a step over one row
    share_of_memory: float  # of what a buffer of that size reads at
    linear_share: float | None  # the same for the linear layers alone; None where the executor doesn't say


@contextmanager
def pinned_to(cpu: int) -> Iterator[None]:
    """The calling thread on one CPU, as a lane's thread would be."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def time_steps(executor: Any, vocab_size: int, rows: int, seconds: float = SECONDS_PER_SIZE) -> float:
    """Median seconds of a step over `rows` tokens after CONTEXT tokens."""
    ids = [(7 * i + 1) % vocab_size for i in range(CONTEXT + rows)]
    executor.forward(0, ids[:CONTEXT], 0, 1)
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < deadline and len(samples) < 2000):
        begin = time.perf_counter()
        executor.forward(0, ids[CONTEXT:], CONTEXT, rows)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def measure_steps(model: Any, figures: ModelFigures, cores: Sequence[int], bandwidth: float) -> StepSpeed:
    """model: pearl_rt.lane.Model; bandwidth: GB/s of a buffer of the model's size on these cores."""
    executor = model.executor(cores)
    with pinned_to(cores[0]):
        times = {rows: time_steps(executor, model.config.vocab_size, rows) for rows in ROWS}
    rate = figures.bytes_per_step / times[1] / 1e9
    return StepSpeed(
        figures.name,
        len(cores),
        {rows: t * 1e3 for rows, t in times.items()},
        rate,
        rate / bandwidth,
        linear_share=None,
    )


def format_steps(speeds: Sequence[StepSpeed]) -> str:
    """One line a model."""
    lines = []
    for s in speeds:
        times = " / ".join(f"{s.milliseconds[rows]:.3f}" for rows in ROWS)
        lines.append(
            f"step of {s.name} over {' / '.join(map(str, ROWS))} tokens at context {CONTEXT}: {times} ms; "
            f"{s.gigabytes_per_second:.1f} GB/s = {s.share_of_memory:.0%} of what memory gives; "
            f"16 tokens cost {s.milliseconds[16] / s.milliseconds[1]:.2f}x one"
        )
    return "\n".join(lines)


def to_dict(speeds: Sequence[StepSpeed]) -> list[dict[str, Any]]:
    return [asdict(s) for s in speeds]
