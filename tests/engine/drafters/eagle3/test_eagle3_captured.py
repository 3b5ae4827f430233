"""An EAGLE-3 head in every form on the fake driver, with requests that join and leave: the text is plain
decoding's, and rounds are the CPU executor's.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import fake_cuda
import pytest
from fake_gpu import FakeWorld, fresh
from test_eagle3_kernels import GREEDY, LOUD, PROMPTS, SHAPED, engine_of

from pearl_rt import Engine, SamplingParams
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

pytestmark = [pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler"), pytest.mark.slow]
FORMS = {
    "events": {"form": "events"},
    "events, one round ahead": {"form": "events", "rounds_ahead": 1},
    "graph": {"form": "graph"},
    "eager": {"form": "eager", "rounds_ahead": 1},
}
# Two run, and the others join as they end: a prompt of three chunks beside others' rounds.
ASKED = ((PROMPTS[0], GREEDY), (PROMPTS[1], LOUD), (PROMPTS[2], GREEDY), (PROMPTS[1], GREEDY))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs; step times are not measured, which would take rounds of every program."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


def told(engine: Engine, *asked: tuple[list[int], SamplingParams], **program: Any) -> list[tuple[Any, ...]]:
    handles = [engine.submit(prompt, params, **program) for prompt, params in asked]
    outputs = [handle.result(240) for handle in handles]
    return [(one.token_ids, one.metrics.rounds, one.metrics.accepted) for one in outputs]


@pytest.mark.parametrize("form", FORMS)
def test_rounds_are_the_executors(world: FakeWorld, form: str) -> None:
    program = {"strategy": "sd", "gamma": 3}
    asked = (*ASKED, (PROMPTS[0], SHAPED))
    with engine_of("plain", "cpu") as engine:
        expected = [told(engine, each, **program)[0] for each in asked]
        plain = [told(engine, each, strategy="ar")[0][0] for each in asked]
    with engine_of("plain", "cuda", **FORMS[form]) as engine:
        found = told(engine, *ASKED, **program)
        found += told(engine, asked[-1], **program)
        assert [tokens for tokens, *_ in found] == plain
        assert found == expected
        assert not engine.stats()["prefix_cache"]["is_on"]
    assert sum(accepted for *_, accepted in expected) > 0
