"""How long the steps of a placement take: a few rounds of each program, run once and read from their trace.

Knows lanes by what they can start and what they say that they did; not devices, prompts or text.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pearl_rt._C as _C
from pearl_rt.errors import NumericsError
from pearl_rt.strategy.planner import StepTimes, seconds
from pearl_rt.strategy.program import MAX_GAMMA
from pearl_rt.types.metrics import TraceRow
from pearl_rt.types.request import Request

MEASURED_GAMMAS = (1, 3, 7, 15)  # scores of 2, 4, 8 and 16 rows, as the kernels take them
POLL_MS = 50  # how long a wait may keep Python from seeing Ctrl-C
# Of lanes whose own times say nothing of a device: a pass of the target takes as long as five of the draft.
NOMINAL_TIMES = replace(StepTimes.constant(1.0, 0.2, overlaps=False), is_measured=False)
NOMINAL_LOOKUP = replace(StepTimes.constant(1.0, 0.001, overlaps=False), is_measured=False)
NOMINAL_AT_ONCE = replace(NOMINAL_TIMES, window={1: 0.2, MAX_GAMMA: 0.2}, drafts_at_once=True)


class TimedLanes(Protocol):
    """Lanes of one placement that leave a trace."""

    @property
    def has_draft(self) -> bool: ...
    @property
    def overlaps(self) -> bool: ...  # whether draft and target are at work at the same time in pearl
    @property
    def drafts_at_once(self) -> bool: ...  # whether a pass of the draft has all rows of a window
    @property
    def measured_gammas(self) -> Sequence[int]: ...  # windows to run: others are interpolated
    @property
    def vocab_size(self) -> int: ...  # of the smaller model
    @property
    def max_model_len(self) -> int: ...
    def start(self, strategy: str, request: Request, judge: str) -> int: ...
    def next(self, timeout_ms: int, min_results: int = 1) -> list[_C.RoundResult] | None: ...
    def stop(self) -> None: ...
    def trace(self) -> list[TraceRow]: ...


def _seconds(row: TraceRow) -> float:
    return (row.end_ns - row.begin_ns) * 1e-9


def _quartile(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]


def bounded(table: Mapping[int, float]) -> dict[int, float]:
    """Sizes -> seconds, in order: none longer than a larger size's, which computes all that a smaller does.
    What was measured longer was disturbed.
    """
    found: dict[int, float] = {}
    for size in sorted(table, reverse=True):
        found[size] = min(table[size], *found.values()) if found else table[size]
    return dict(sorted(found.items()))


def target_steps(
    strategy: str, results: Sequence[_C.RoundResult], trace: Sequence[TraceRow]
) -> dict[int, tuple[int, float]]:
    """Round -> (tokens that its score fed, seconds of score and verify), of one sequence alone."""
    rows = {
        result.round: result.num_judged + 1 if strategy == "sd" else result.pending_before + 1
        for result in results
        if result.round > 0
    }
    spent: dict[int, float] = dict.fromkeys(rows, 0.0)
    for row in trace:
        if row.round in rows and row.op in ("score", "verify"):
            spent[row.round] += _seconds(row)
    return {number: (count, spent[number]) for number, count in rows.items()}


def drift(strategy: str, steps: Mapping[int, tuple[int, float]], times: StepTimes) -> float:
    """How many times as long the target's steps of an answer took as when they were measured: for its longer
    text, and what else the machine did. 1 where they left no times.
    """
    table = times.target if strategy != "pearl" else times.beside_target or times.target
    expected = sum(seconds(table, count) for count, spent in steps.values() if spent > 0)
    return sum(spent for _, spent in steps.values()) / expected if expected else 1.0


@dataclass(frozen=True)
class Sample:
    """Step times of one short run: the lower quartile, as what else the machine does only adds to them."""

    target: dict[int, float]  # tokens in the forward -> seconds of score and verify
    window: float  # seconds of a window; NaN without a draft

    @classmethod
    def read(cls, strategy: str, results: Sequence[_C.RoundResult], trace: Sequence[TraceRow]) -> "Sample":
        steps = target_steps(strategy, results, trace)
        windows = [_seconds(row) for row in trace if row.op == "draft" and row.round in steps]
        by_rows: dict[int, list[float]] = {}
        for count, spent in steps.values():
            by_rows.setdefault(count, []).append(spent)
        # The first round of a run still warms caches up.
        target = {count: _quartile(times[1:] or times) for count, times in by_rows.items()}
        return cls(target, _quartile(windows[1:] or windows) if windows else math.nan)


def sample_of(lanes: TimedLanes, strategy: str, gamma: int, rounds: int) -> Sample:
    prompt = [(7 * i + 1) % lanes.vocab_size for i in range(min(16, lanes.max_model_len // 4 or 1))]
    limit = lanes.max_model_len - len(prompt)
    request = Request(prompt, gamma=gamma, max_tokens=limit, ignore_eos=True, shares=False)
    lanes.start(strategy, request, "rejection")
    results: list[_C.RoundResult] = []
    while len(results) <= rounds:
        more = lanes.next(POLL_MS, rounds + 1)
        if more is None:
            break
        results += more
    lanes.stop()
    while lanes.next(0) is not None:
        pass
    if results and results[-1].finish_reason == "error":
        raise NumericsError(results[-1].error)
    return Sample.read(strategy, results, lanes.trace())


def measure(lanes: TimedLanes) -> StepTimes:
    """Runs a few rounds of each program on a made-up prompt -> the times of their steps."""
    target = dict(sample_of(lanes, "ar", 0, 4).target)
    rounds = min(12, max(3, int(0.05 / target[1])))
    target |= sample_of(lanes, "ar", 0, rounds).target
    if not lanes.has_draft:
        return StepTimes(target)
    window: dict[int, float] = {}
    for gamma in lanes.measured_gammas:
        sample = sample_of(lanes, "sd", gamma, rounds)
        target = sample.target | target
        window[gamma] = sample.window
    # Once more, now that all is warm: everything is compared with a score of one token.
    again = sample_of(lanes, "ar", 0, rounds).target
    target, window = bounded(target | {1: min(target[1], again[1])}), bounded(window)
    if not lanes.overlaps:
        return StepTimes(target, window, drafts_at_once=lanes.drafts_at_once)
    beside_target: dict[int, float] = {}
    beside_window: dict[int, float] = {}
    for gamma in lanes.measured_gammas:
        sample = sample_of(lanes, "pearl", gamma, rounds)
        beside_target |= sample.target
        beside_window[gamma] = sample.window
    # A draft that is never right shows only scores of one token: the others slow down alike.
    slowdown = statistics.median(t / seconds(target, rows) for rows, t in beside_target.items())
    beside_target = {rows: t * slowdown for rows, t in target.items()} | beside_target
    beside = bounded(beside_target), bounded(beside_window)
    return StepTimes(target, window, *beside, drafts_at_once=lanes.drafts_at_once)
