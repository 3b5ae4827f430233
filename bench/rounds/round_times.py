"""What a timed trace says of a run's rounds: how long its steps take alone and beside each other, and when no
lane works.

Knows trace rows and counts of rounds; no engines, and nothing of what was expected. Rows of rounds that were
issued ahead of the end of a run, and returned at once, are left out; so are the first rounds, which warm up.

    between rounds   from the last end of one round's steps to the first begin of the next one's
    within a round   what no lane works of the time from a round's first begin to its last end
    together         from the first begin to the last end of a round's window and score: (D||T) in pearl
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pearl_rt.types.metrics import RequestMetrics

SKIPPED_ROUNDS = 2
NAN = math.nan
Span = tuple[int, int]  # begin, end in ns


def rounds_of(metrics: RequestMetrics) -> list[dict[str, Span]]:
    """For each counted round in order: op -> span. "score window" is a score."""
    rounds: dict[int, dict[str, Span]] = {}
    skipped = min(SKIPPED_ROUNDS, metrics.rounds // 3)
    for row in metrics.trace:
        if row.op != "wait" and skipped < row.round <= metrics.rounds:
            rounds.setdefault(row.round, {})[row.op.split()[0]] = row.begin_ns, row.end_ns
    return [rounds[number] for number in sorted(rounds)]


def covered(spans: Iterable[Span]) -> int:
    """Nanoseconds in which at least one of the spans lasts."""
    total, reached = 0, None
    for begin, end in sorted(spans):
        start = begin if reached is None else max(begin, reached)
        total += max(0, end - start)
        reached = end if reached is None else max(reached, end)
    return total


def outer(spans: Sequence[Span]) -> Span:
    """First begin, last end."""
    return min(begin for begin, _ in spans), max(end for _, end in spans)


def median_of(values: Sequence[float]) -> float:
    return statistics.median(values) if values else NAN


def percentile_95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % do not pass."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else NAN


@dataclass(frozen=True)
class RoundTimes:
    """One program's rounds. Medians in microseconds; NaN where the program has no such step."""

    rounds: int
    window: float
    score: float
    verify: float
    together: float
    between_p50: float
    between_p95: float
    within_p50: float
    idle_share: float  # of the whole time, between and within

    def to_dict(self) -> dict[str, Any]:
        """NaN is no JSON: None."""
        return {key: finite(value) for key, value in asdict(self).items()}


def finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def round_times(runs: Sequence[RequestMetrics]) -> RoundTimes:
    """Over all rounds of several runs of one program."""
    steps: dict[str, list[float]] = {"draft": [], "score": [], "verify": []}
    together: list[float] = []
    between: list[float] = []
    within: list[float] = []
    busy = whole = count = 0
    for metrics in runs:
        rounds = rounds_of(metrics)
        count += len(rounds)
        for ops in rounds:
            for op, (begin, end) in ops.items():
                steps.setdefault(op, []).append((end - begin) * 1e-3)
            begin, end = outer(list(ops.values()))
            work = covered(ops.values())
            within.append((end - begin - work) * 1e-3)
            busy += work
            if "draft" in ops and "score" in ops:
                first, last = outer([ops["draft"], ops["score"]])
                together.append((last - first) * 1e-3)
        ends = [outer(list(ops.values())) for ops in rounds]
        between += [(after[0] - before[1]) * 1e-3 for before, after in itertools.pairwise(ends)]
        whole += ends[-1][1] - ends[0][0] if ends else 0
    return RoundTimes(
        count,
        median_of(steps["draft"]),
        median_of(steps["score"]),
        median_of(steps["verify"]),
        median_of(together),
        median_of(between),
        percentile_95(between),
        median_of(within),
        1 - busy / whole if whole else NAN,
    )


@dataclass(frozen=True)
class Together:
    """A window and a score of the same shapes, each alone and beside the other. Microseconds."""

    gamma: int
    window: float
    score: float
    window_beside: float
    score_beside: float
    together: float

    @property
    def slowdown(self) -> float:
        """What the longer of the two pays for company: 1 on two devices, 2 where nothing can be shared."""
        return self.together / max(self.window, self.score)

    @property
    def hidden(self) -> float:
        """How much of the shorter one disappears behind the longer one: 1 all, 0 none, below that a loss."""
        return (self.window + self.score - self.together) / min(self.window, self.score)

    def to_dict(self) -> dict[str, Any]:
        whole = asdict(self) | {"slowdown": self.slowdown, "hidden": self.hidden}
        return {key: finite(value) for key, value in whole.items()}


def compare(gamma: int, alone: RoundTimes, scored: RoundTimes, beside: RoundTimes) -> Together:
    """alone: sd with that window. scored: what scores gamma rows, as pearl does, with nothing beside it.
    beside: pearl.
    """
    return Together(gamma, alone.window, scored.score, beside.window, beside.score, beside.together)


def format_times(times: Mapping[str, RoundTimes]) -> str:
    """A line a program."""
    names = ("window", "score", "verify", "together", "between_p50", "between_p95", "within_p50")
    heads = ("t_draft", "t_target", "verify", "D||T", "between", "p95", "within", "no lane works")
    width = max(len(name) for name in times)
    lines = [" ".join(["us".ljust(width), *(f"{head:>9}" for head in heads)])]
    for name, t in times.items():
        figures = [f"{getattr(t, key):9.1f}" for key in names]
        lines.append(" ".join([name.ljust(width), *figures, f"{t.idle_share:12.1%}"]).replace("nan", "  -"))
    return "\n".join(lines)


def format_together(t: Together) -> str:
    """What D||T costs, as a line."""
    return (
        f"D||T at gamma {t.gamma}: a window takes {t.window:.0f} us alone and {t.window_beside:.0f} beside a "
        f"score, a score {t.score:.0f} and {t.score_beside:.0f}; both together {t.together:.0f}, "
        f"{t.slowdown:.2f} times the longer one; {t.hidden:.0%} of the shorter one is hidden"
    )
