"""Parameters and figures: what is refused, and what the numbers mean on a request small enough to count by
hand.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from pearl_rt.errors import RequestError
from pearl_rt.types.metrics import TraceRow, measure
from pearl_rt.types.rounds import ORIGINS, origins
from pearl_rt.types.sampling_params import SamplingParams


@dataclass
class Round:
    token_ids: list[int]
    accept_len: int = 0
    num_judged: int = 0
    pending_before: int = 0
    is_refused: bool = False
    forced: tuple[int, ...] = ()
    certain: tuple[int, ...] = ()
    num_cached_tokens: int = -1
    t_ns: int = 0


@dataclass
class Case:
    rounds: list[Round] = field(
        default_factory=lambda: [
            Round([1], t_ns=1_000),  # prefill
            Round([2, 3, 4], 3, 3, 2, t_ns=2_000),  # all accepted: two of the window before, one of the new
            Round([5, 6], 1, 3, 2, t_ns=3_000),  # one accepted, then a rejection
            Round([7], 0, 1, 0, t_ns=5_000),  # a rejection at once
        ]
    )


def test_figures_by_hand() -> None:
    trace = [
        TraceRow("target", "prefill", 0, 0, 1_000),
        TraceRow("target", "score", 1, 1_000, 2_000),
        TraceRow("target", "wait", 2, 2_000, 3_000),
        TraceRow("draft", "draft", 2, 500, 3_000),
    ]
    m = measure(
        Case().rounds,
        start_ns=0,
        num_prompt_tokens=4,
        strategy="pearl",
        gamma=3,
        placement="split",
        trace=trace,
    )
    assert m.ttft == pytest.approx(1e-6)
    assert m.token_times == pytest.approx((1e-6, 2e-6, 2e-6, 2e-6, 3e-6, 3e-6, 5e-6))
    assert m.tpot == pytest.approx(4e-6 / 6)
    assert (m.rounds, m.accepted, m.judged, m.rejections) == (3, 4, 6, 2)
    assert m.acceptance_rate == pytest.approx(4 / 6)
    assert (m.judged_at, m.accepted_at) == ((2, 2, 2), (1, 2, 1))  # gamma 3: places in a window
    assert m.accepted_per_position == (0.5, 1, 0.5)
    assert m.mean_acceptance_length == pytest.approx(1 + 4 / 3)
    assert m.tokens_per_round == 2
    assert m.mean_accepted_tokens == pytest.approx(4 / 2 + 1)
    assert m.target_busy == pytest.approx(1 / 4)  # of 1000..5000 ns; prefill and waits left out
    assert m.draft_busy == pytest.approx(2 / 4)


def test_tokens_behind_a_stop_string_are_not_counted() -> None:
    m = measure(
        Case().rounds,
        start_ns=0,
        num_prompt_tokens=4,
        strategy="pearl",
        gamma=3,
        placement="split",
        num_tokens=5,
        queue_time=0.25,
    )
    assert m.token_times == pytest.approx((1e-6, 2e-6, 2e-6, 2e-6, 3e-6))
    assert m.queue_time == 0.25


def test_figures_of_one_token_are_nan_not_errors() -> None:
    m = measure(
        [Round([1], t_ns=9)], start_ns=0, num_prompt_tokens=1, strategy="ar", gamma=0, placement="shared"
    )
    assert m.ttft == pytest.approx(9e-9)
    for value in (m.tpot, m.tokens_per_second, m.acceptance_rate, m.mean_acceptance_length, m.draft_busy):
        assert math.isnan(value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": float("nan")}, "nan"),
        ({"temperature": float("inf")}, "inf"),
        ({"temperature": 1001}, "0 for greedy"),
        ({"temperature": "hot"}, "'hot'"),
        ({"temperature": True}, "True"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"max_tokens": -3}, "max_tokens -3"),
        ({"max_tokens": 2.5}, "2.5"),
        ({"seed": -2}, "seed -2"),
        ({"seed": 2**64}, "2\\*\\*64"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop_token_ids": (-2,)}, "stop_token_ids\\[0\\] is -2"),
        ({"stop_token_ids": (1.0,)}, "stop_token_ids\\[0\\]"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"stop": ["a", ""]}, "stop\\[1\\] must be a text"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    ],
    ids=str,
)
def test_parameters_refused(given: dict, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        SamplingParams(**given)


def test_parameters_accepted() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5), max_tokens=np.int64(3), seed=2**64 - 1, stop_token_ids=[1, 2]
    )
    assert params == SamplingParams(0.5, 3, 2**64 - 1, False, (1, 2))
    assert type(params.max_tokens) is int
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=None).stop == ()
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert str(SamplingParams(temperature=-0.0).temperature) == "0.0"


def test_origins_by_hand() -> None:
    rounds = [
        Round([1]),  # of the prompt's pass
        Round([2, 3, 4], 3, 3, 2, forced=(1,)),  # all accepted: no token of the target's own
        Round([5, 6], 1, 3, 2),  # a rejection
        Round([7, 8, 9], 2, 2, forced=(0, 1)),  # all stood, and a bonus
        Round([10]),  # nothing was drafted
        Round([11], 0, 1),
        Round([12, 13], 3, 4),  # cut in the middle of what stood
    ]
    told = origins(rounds, 5)
    assert [origin.kind for origin in told] == [
        *("plain", "accepted", "forced", "accepted", "accepted", "recovered"),
        *("forced", "forced", "bonus", "plain", "recovered", "accepted", "accepted"),
    ]
    assert [origin.round for origin in told] == [5, 6, 6, 6, 7, 7, 8, 8, 8, 9, 10, 11, 11]
    assert {origin.kind for origin in told} == set(ORIGINS)
    m = measure(
        rounds, start_ns=0, num_prompt_tokens=1, strategy="sd", gamma=3, placement="shared", num_tokens=12
    )
    assert [origin.round for origin in m.origins] == [origin.round - 5 for origin in told[:12]]
