"""What step times and an acceptance rate allow, and what share of it a run reached.

Every draft is taken to be accepted with the same probability, independently, as in the planner. The rounds
that an answer of so many tokens then takes are counted out; the last of them may not give all that it could.
The seconds of a round are those of its steps on the device's clock, with nothing between them:

    ar     t_T(1) + t_V
    sd     t_D(gamma) + t_T(gamma + 1) + t_V
    pearl  (D||T)(gamma) + t_V        window and score measured together, not the longer one alone

So a share below 1 is time between steps, or tokens that depended on each other. The table shows both parts.
Knows no engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.rounds.round_times import RoundTimes
from pearl_rt.types.metrics import RequestMetrics


@dataclass(frozen=True)
class Share:
    """A program against its own model."""

    program: str
    strategy: str
    alpha: float
    tokens_expected: float  # a round
    tokens_found: float
    us_expected: float  # a round
    us_found: float

    @property
    def expected(self) -> float:
        """Tokens per second."""
        return self.tokens_expected / self.us_expected * 1e6

    @property
    def found(self) -> float:
        return self.tokens_found / self.us_found * 1e6

    @property
    def share(self) -> float:
        return self.found / self.expected

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"expected": self.expected, "found": self.found, "share": self.share}


def expected_rounds(strategy: str, alpha: float, gamma: int, tokens: int) -> float:
    """Mean rounds until `tokens` tokens have followed the first one.

    sd     k accepted (1 - a) a^k, or all gamma a^gamma: k + 1 tokens
    pearl  pre: one token, then post with a; post: k + 1 tokens and pre with (1 - a) a^k, or gamma and post
    """
    if strategy == "ar":
        return float(tokens)
    missed = [(1 - alpha) * alpha**k for k in range(gamma)]  # the first miss is draft k: k + 1 tokens
    all_stand = alpha**gamma
    pre, post = [0.0], [0.0]  # rounds that are left for n tokens, by state; sd has the first state only
    for n in range(1, tokens + 1):
        after_miss = sum(p * pre[max(n - k - 1, 0)] for k, p in enumerate(missed))
        if strategy == "sd":
            pre.append(1 + after_miss + all_stand * pre[max(n - gamma - 1, 0)])
            continue
        pre.append(1 + alpha * post[n - 1] + (1 - alpha) * pre[n - 1])
        post.append(1 + after_miss + all_stand * post[max(n - gamma, 0)])
    return pre[tokens]


def microseconds_per_round(strategy: str, times: RoundTimes) -> float:
    """By the steps of the program's own timed run."""
    if strategy == "ar":
        return times.score + times.verify
    if strategy == "sd":
        return times.window + times.score + times.verify
    return times.together + times.verify


def share_of(
    program: str,
    strategy: str,
    gamma: int,
    alpha: float,
    times: RoundTimes,
    runs: Sequence[RequestMetrics],
) -> Share | None:
    """runs: the untimed ones that the table is made of; times: of a timed run. None: no round to count."""
    counted = [run for run in runs if run.rounds > 0]
    rounds = sum(run.rounds for run in counted)
    seconds = sum(run.token_times[-1] - run.token_times[0] for run in counted)
    spent = microseconds_per_round(strategy, times)
    if not rounds or seconds <= 0 or math.isnan(spent):
        return None
    tokens = sum(len(run.token_times) - 1 for run in counted)
    expected = sum(expected_rounds(strategy, alpha, gamma, len(run.token_times) - 1) for run in counted)
    return Share(program, strategy, alpha, tokens / expected, tokens / rounds, spent, seconds / rounds * 1e6)


def format_shares(shares: Sequence[Share]) -> str:
    """A line a program."""
    lines = []
    for s in shares:
        alpha = "" if s.strategy == "ar" else f" at acceptance {s.alpha:.3f}"
        lines.append(
            f"{s.program}{alpha}: {s.expected:.1f} tok/s expected of its steps, {s.found:.1f} found, "
            f"{s.share:.1%} (tokens a round {s.tokens_found:.2f} of {s.tokens_expected:.2f}, us a round "
            f"{s.us_found:.0f} for {s.us_expected:.0f})"
        )
    return "\n".join(lines)
