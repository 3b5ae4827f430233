"""What plain decoding would have taken for a request: by the measured step, and by how its own steps went."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from pearl_rt.strategy.chooser import Chooser
from pearl_rt.strategy.planner import Plan, StepTimes
from pearl_rt.strategy.step_timing import NOMINAL_TIMES
from pearl_rt.types.metrics import TraceRow

TIMES = StepTimes({1: 1.0, 3: 2.0, 5: 4.0}, {4: 1.0}, {1: 2.0, 3: 4.0, 5: 8.0}, {4: 1.0})
PROGRAM = Plan("sd", 4, "shared", 0.0, 0.0)


@dataclass
class Round:
    round: int
    num_judged: int = 0
    pending_before: int = 0


def steps(*seconds: float) -> list[TraceRow]:
    """A score of so many seconds in each round from 0 on, a quarter of them its verdict; and a long draft."""
    rows = []
    for number, spent in enumerate(seconds):
        cuts = [0, round(0.75e9 * spent), round(1e9 * spent)]
        rows += [
            TraceRow("target", "score", number, *cuts[:2]),
            TraceRow("target", "verify", number, *cuts[1:]),
        ]
        rows += [TraceRow("target", "wait", number, 0, 10**10), TraceRow("draft", "draft", number, 0, 10**10)]
    return rows


def chooser(**times: StepTimes) -> Chooser:
    made = Chooser()
    made.times |= times
    return made


def test_steps_that_took_three_times_as_long() -> None:
    rounds = [Round(0), Round(1, 4), Round(2, 2), Round(3, 4)]  # 5, 3 and 5 tokens: 4, 2 and 4 s
    trace = steps(100.0, 14.0, 6.0, 10.0)  # 30 s for 10
    assert chooser(shared=TIMES).plain_tpot(PROGRAM, rounds, trace) == pytest.approx(3.0)
    faster = replace(TIMES, target={1: 0.5})
    assert chooser(shared=TIMES, split=faster).plain_tpot(PROGRAM, rounds, trace) == pytest.approx(1.5)


def test_pearl_is_compared_with_steps_beside_the_other_lane() -> None:
    rounds = [Round(0), Round(1, 1), Round(2, 3, 2)]  # 1 and 3 tokens: 2 and 4 s beside the draft
    program = replace(PROGRAM, strategy="pearl")
    assert chooser(shared=TIMES).plain_tpot(program, rounds, steps(9.0, 2.0, 4.0)) == pytest.approx(1.0)
    alone = replace(TIMES, beside_target=None, beside_window=None)
    assert chooser(shared=alone).plain_tpot(program, rounds, steps(9.0, 2.0, 4.0)) == pytest.approx(2.0)


def test_without_a_trace_it_is_the_measured_step() -> None:
    assert chooser(shared=TIMES).plain_tpot(PROGRAM, [Round(0), Round(1, 4)], []) == 1.0


def test_what_is_not_measured_is_not_told() -> None:
    assert chooser(shared=NOMINAL_TIMES).plain_tpot(PROGRAM, [Round(0)], []) is None
    assert chooser().plain_tpot(PROGRAM, [], []) is None
    assert chooser(shared=TIMES).plain_tpot(replace(PROGRAM, placement=""), [], []) is None
