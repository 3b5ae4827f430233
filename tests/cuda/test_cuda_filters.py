"""Filters that leave one token make sampling greedy: in every form, by both judges, for target and draft.

Captured steps are made before a request is there: they serve filters that no request has asked for yet.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import fake_cuda
import pytest
from fake_gpu import FakeWorld, fresh
from test_cuda_engine import MAX_LEN, ONE, pair_of

from pearl_rt import SamplingParams
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

ONE_LEFT: tuple[dict[str, Any], ...] = ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0})
PLACES: dict[str, dict[str, Any]] = {
    "events": {"form": "events"},
    "graph": {"form": "graph"},
    "draft on another GPU": {"form": "graph", "draft_device": "cuda:1"},
    "draft on the CPU": {"form": "events", "draft_device": "cpu"},
    "interpret": {"device": "interpret"},
}

pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="the fake driver needs a compiler")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs; step times are not measured, which would take rounds of every program."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


@cache
def tokens_of_executor(params: SamplingParams) -> list[int]:
    """Tokens of the target alone, on the CPU's executor."""
    with pair_of("equal").engine(device="cpu", max_model_len=MAX_LEN, num_threads=1) as engine:
        return engine.generate(ONE, params, strategy="ar", judge="coupled")[0].token_ids


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["rejection", "coupled"])
@pytest.mark.parametrize("place", PLACES)
def test_one_token_left_is_the_greedy_one(world: FakeWorld, place: str, judge: str) -> None:
    """The draft is the target: where it is filtered too, each of its tokens is accepted."""
    greedy = tokens_of_executor(SamplingParams(max_tokens=7))
    loud = SamplingParams(max_tokens=7, temperature=5.0, seed=1)
    assert tokens_of_executor(loud)[:3] != greedy[:3]  # so that a run without filters would show
    options = {"device": "cuda", "max_model_len": MAX_LEN} | PLACES[place]
    with pair_of("equal").engine(strategy="sd", gamma=2, judge=judge, **options) as engine:
        outputs = [engine.generate(ONE, replace(loud, **own))[0] for own in ONE_LEFT]
    for output, own in zip(outputs, ONE_LEFT, strict=True):
        assert output.token_ids == greedy, own
        assert output.metrics.acceptance_rate == 1.0, own
