"""The executor's own speed: decode steps over 1, 8 and 16 tokens, what share of the memory's speed they
reach, and prefill.

A step is timed from outside, `forward` to logits, at a context of CONTEXT tokens. Knows no strategies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.environment import ModelFigures
from pearl_rt._C import LlamaExecutor
from pearl_rt.backends.cpu import Model

CONTEXT = 256
PROMPT = 512  # tokens of a prefill, or all that the model takes
ROWS = (1, 8, 16)
TURNS = 3  # memory, then the step, then memory again: both are measured under the same neighbours
SECONDS_PER_TURN = 0.2


@dataclass(frozen=True)
class StepSpeed:
    """One model on one set of cores. Shares are of what a buffer as large as the weights is read at."""

    name: str
    cores: int
    milliseconds: dict[int, float]  # rows -> median step
    gigabytes_per_second: float  # weights read by a step over one row
    step_share: float
    linear_share: float  # the linear layers alone
    prompt: int  # tokens of the prefill
    prefill_milliseconds: float  # of all of them into an empty cache, median


def time_steps(executor: LlamaExecutor, ids: Sequence[int], rows: int) -> float:
    """Median seconds of a step over `rows` tokens after CONTEXT tokens, which are in the cache."""
    step = list(ids[CONTEXT : CONTEXT + rows])
    samples: list[float] = []
    deadline = time.perf_counter() + SECONDS_PER_TURN
    while len(samples) < 3 or (time.perf_counter() < deadline and len(samples) < 1000):
        begin = time.perf_counter()
        executor.forward(0, step, CONTEXT, rows)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def time_prefill(executor: LlamaExecutor, ids: Sequence[int]) -> float:
    """Seconds of a prompt into an empty cache, to the logits of its last token."""
    begin = time.perf_counter()
    executor.forward(0, ids, 0, 1)
    return time.perf_counter() - begin


def measure_steps(model: Model, figures: ModelFigures, cores: Sequence[int]) -> StepSpeed:
    """A share is the median over turns of two figures taken in succession."""
    from pearl_rt import _C

    core_set = _C.CoreSet(list(cores))
    executor = model.executor(core_set)
    prompt = min(PROMPT, len(model.cos))
    ids = [(7 * i + 1) % model.config.vocab_size for i in range(max(CONTEXT + max(ROWS), prompt))]
    prefills = [time_prefill(executor, ids[:prompt]) for _ in range(TURNS)]
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    step_shares, linear_shares = [], []
    executor.forward(0, ids[:CONTEXT], 0, 1)
    for _ in range(TURNS):
        bandwidth = _C.measure_bandwidth(core_set, figures.bytes_per_step, SECONDS_PER_TURN)
        for rows in ROWS:
            times[rows].append(time_steps(executor, ids, rows))
        step_shares.append(figures.bytes_per_step / times[1][-1] / bandwidth)
        linear_shares.append(figures.bytes_per_step / executor.time_linears(1, 10) / bandwidth)
    medians = {rows: statistics.median(values) for rows, values in times.items()}
    return StepSpeed(
        figures.name,
        len(cores),
        {rows: t * 1e3 for rows, t in medians.items()},
        figures.bytes_per_step / medians[1] / 1e9,
        statistics.median(step_shares),
        statistics.median(linear_shares),
        prompt,
        statistics.median(prefills) * 1e3,
    )


def format_steps(speeds: Sequence[StepSpeed]) -> str:
    """Three lines a model."""
    lines = []
    for s in speeds:
        times = " / ".join(f"{s.milliseconds[rows]:.3f}" for rows in ROWS)
        lines += [
            f"step of {s.name} over {' / '.join(map(str, ROWS))} tokens at context {CONTEXT}: {times} ms; "
            f"16 tokens cost {s.milliseconds[16] / s.milliseconds[1]:.2f}x one",
            f"  over one it reads weights at {s.gigabytes_per_second:.1f} GB/s, {s.step_share:.0%} of what "
            f"memory gives; its linear layers alone {s.linear_share:.0%}",
            f"  prefill of {s.prompt} tokens: {s.prefill_milliseconds:.1f} ms, "
            f"{s.prompt / s.prefill_milliseconds * 1e3:.0f} tok/s",
        ]
    return "\n".join(lines)
