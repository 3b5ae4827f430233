"""What synthetic traces say of gaps and overlap, and what steps and acceptance allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from bench_fakes import run_of, steady_run, times_of

from bench.rounds.expected import expected_rounds, share_of
from bench.rounds.round_times import compare, covered, format_times, round_times
from pearl_rt.strategy.planner import pearl_tokens, sd_tokens
from pearl_rt.types.metrics import TraceRow

MICRO = 1_000


# what a trace says


def serial_rows(rounds: int, gap: int, late: Sequence[int] = ()) -> list[TraceRow]:
    """sd: draft 300 us, 5 us, score 500, 2 us, verify 10; `gap` us between rounds, 100 more before `late`."""
    rows, at = [], 0
    for number in range(1, rounds + 1):
        at += (gap + (100 if number in late else 0)) * MICRO
        for lane, op, length, pause in (
            ("draft", "draft", 300, 5),
            ("target", "score window", 500, 2),
            ("target", "verify", 10, 0),
        ):
            rows.append(TraceRow(lane, op, number, at, at + length * MICRO))
            at += (length + pause) * MICRO
        rows.append(TraceRow("draft", "wait", number, at - 500 * MICRO, at + 900 * MICRO))  # never counted
    return rows


def parallel_rows(rounds: int, window: int, score: int) -> list[TraceRow]:
    """pearl: window and score begin together, verify 4 us behind the longer one, 6 us between rounds."""
    rows, at = [], 0
    for number in range(1, rounds + 1):
        end = at + (max(window, score) + 4) * MICRO
        rows += [
            TraceRow("draft", "draft", number, at, at + window * MICRO),
            TraceRow("target", "score", number, at, at + score * MICRO),
            TraceRow("target", "verify", number, end, end + 10 * MICRO),
        ]
        at = end + 16 * MICRO
    return rows


def test_time_is_covered_once() -> None:
    assert covered([(0, 10), (5, 7), (20, 30), (25, 40)]) == 30
    assert covered([]) == 0


def test_gaps_of_a_serial_run() -> None:
    """Late rounds show in the 95 %, not in the median; the first two rounds and waits are left out."""
    found = round_times([run_of("sd", serial_rows(30, 8, late=(1, 2, 10, 20)), 30)])
    assert found.rounds == 28
    assert (found.window, found.score, found.verify) == (300, 500, 10)
    assert found.between_p50 == pytest.approx(8) and found.between_p95 == pytest.approx(108)
    assert found.within_p50 == pytest.approx(7)
    assert found.idle_share == pytest.approx((28 * 7 + 27 * 8 + 200) / (28 * 817 + 27 * 8 + 200), rel=1e-6)
    assert round_times([run_of("sd", serial_rows(30, 8), 30)]).between_p95 == pytest.approx(8)


def test_rounds_that_returned_at_once_are_no_rounds() -> None:
    """Issued ahead of the end: a few microseconds each, behind the last verdict."""
    rows = serial_rows(12, 8)
    end = rows[-2].end_ns
    ahead = [
        TraceRow(lane, op, number, end + i * 3000, end + i * 3000 + 2000)
        for i, (lane, op, number) in enumerate(
            (lane, op, number)
            for number in (13, 14)
            for lane, op in (("draft", "draft"), ("target", "score window"), ("target", "verify"))
        )
    ]
    assert round_times([run_of("sd", [*rows, *ahead], 12)]) == round_times([run_of("sd", rows, 12)])


def test_a_run_without_rounds_says_nothing() -> None:
    found = round_times([run_of("ar", [], 0)])
    assert found.rounds == 0 and math.isnan(found.idle_share)
    assert set(found.to_dict().values()) == {0, None}
    assert " - " in format_times({"ar/events": found})


@pytest.mark.parametrize(
    ("window", "score", "slowdown", "hidden"),
    [(300, 500, 1.0, 1.0), (330, 620, 1.24, 0.6), (800, 800, 1.6, 0.0)],
    ids=["two-devices", "some", "nothing-hidden"],
)
def test_overlap_is_compared_with_each_alone(window: int, score: int, slowdown: float, hidden: float) -> None:
    alone = round_times([run_of("sd", serial_rows(20, 8), 20)])
    beside = round_times([run_of("pearl", parallel_rows(20, window, score), 20)])
    assert beside.between_p50 == pytest.approx(6) and beside.within_p50 == pytest.approx(4)
    found = compare(4, alone, alone, beside)
    assert (found.window, found.score, found.together) == (300, 500, max(window, score))
    assert found.slowdown == pytest.approx(slowdown) and found.hidden == pytest.approx(hidden)


# what is expected


def test_what_steps_allow() -> None:
    """By hand: one draft at 0.5 takes 1.5 tokens a round, but the last of 3 tokens may be half of a round."""
    assert expected_rounds("sd", 0.5, 1, 3) == pytest.approx(1 + 0.5 * 1 + 0.5 * 1.5)
    run = steady_run([2, 1], 1000.0)
    serial = share_of("sd/events gamma 1", "sd", 1, 0.5, times_of(300, 600, 12), [run])
    assert serial is not None
    assert serial.tokens_expected == pytest.approx(3 / 2.25) and serial.us_expected == pytest.approx(912)
    assert serial.found == pytest.approx(1500) and serial.expected == pytest.approx(3e6 / 2.25 / 912)
    assert serial.share == pytest.approx(1500 / (3e6 / 2.25 / 912))
    parallel = share_of("p", "pearl", 4, 0.8, times_of(300, 600, 12, 640), [run])
    assert parallel is not None and parallel.us_expected == pytest.approx(652)
    alone = share_of("ar/events", "ar", 0, 0.0, times_of(math.nan, 600, 12), [steady_run([1] * 50, 612)])
    assert alone is not None and alone.share == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("gamma", [1, 2, 7])
def test_long_answers_take_the_planners_rounds(alpha: float, gamma: int) -> None:
    for strategy, tokens in (("sd", sd_tokens(alpha, gamma)), ("pearl", pearl_tokens(alpha, gamma))):
        counted = [expected_rounds(strategy, alpha, gamma, n) for n in (2000, 4000)]
        assert 2000 / (counted[1] - counted[0]) == pytest.approx(tokens, rel=1e-3)


def rounds_played(strategy: str, alpha: float, gamma: int, tokens: int, rng: np.random.Generator) -> int:
    """PEARL's rule by its counters (committed, pending), and the serial one, until enough is committed."""
    committed = pending = rounds = 0
    while committed < tokens:
        judged = gamma if strategy == "sd" else pending + 1
        stands = 0
        while stands < judged and rng.random() < alpha:
            stands += 1
        rounds += 1
        committed += stands + 1 if strategy == "sd" or stands < judged else judged
        pending = gamma - 1 if strategy == "pearl" and stands == judged else 0
    return rounds


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_expected_rounds_are_those_of_the_rule(strategy: str) -> None:
    """4 standard errors of 4,000 answers (false alarm 1 in 16,000; fixed seed)."""
    rng = np.random.default_rng(0)
    played = np.array([rounds_played(strategy, 0.85, 6, 90, rng) for _ in range(4000)])
    expected = expected_rounds(strategy, 0.85, 6, 90)
    assert abs(played.mean() - expected) < 4 * played.std() / np.sqrt(len(played))


def test_a_model_without_its_steps_is_none() -> None:
    run = steady_run([3] * 10, 1000.0)
    assert share_of("p", "pearl", 4, 0.8, times_of(300, 600, 12), [run]) is None
    assert share_of("ar", "ar", 0, 0.0, times_of(0, 600, 12), [steady_run([], 1.0)]) is None
