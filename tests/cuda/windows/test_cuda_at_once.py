"""A draft that fills a window in one pass, in every form on the fake driver: the text is plain decoding's,
and the rounds are the CPU's.
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
from test_cuda_engine import LONG, MAX_LEN, ONE, pair_of
from test_cuda_filters import PLACES

from pearl_rt import Engine, SamplingParams
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

MASK = 29  # behind which drafts stand more often than not
ASKED = (
    (ONE, SamplingParams(max_tokens=23)),  # to max_model_len, before which windows are shorter
    (LONG[:6], SamplingParams(temperature=0.9, seed=6, max_tokens=9)),
)
SHAPED = (ONE, SamplingParams(temperature=1.0, seed=4, max_tokens=5, repetition_penalty=1.4, top_k=12))

pytestmark = [pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler"), pytest.mark.slow]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs; step times are not measured, which would take rounds of every program."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


def engine_of(**options: Any) -> Engine:
    pair = pair_of()
    draft = replace(pair.config, pard_token=MASK)
    return Engine(pair.config, pair.target, draft, pair.draft, max_model_len=MAX_LEN, **options)


def told(engine: Engine, *asked: tuple[list[int], SamplingParams], **program: Any) -> list[tuple[Any, ...]]:
    handles = [engine.submit(prompt, params, **program) for prompt, params in asked]
    outputs = [handle.result(120) for handle in handles]
    return [(one.token_ids, one.metrics.rounds, one.metrics.acceptance_rate) for one in outputs]


@cache
def of_executor() -> dict[str, list[tuple[Any, ...]]]:
    """By program, the rounds of each request alone; "ar" has texts to compare with."""
    with engine_of(device="cpu", num_threads=1, placement="shared", judge="coupled") as engine:
        return {
            strategy: [
                told(engine, asked, strategy=strategy, gamma=None if strategy == "ar" else 4)[0]
                for asked in (*ASKED, SHAPED)
            ]
            for strategy in ("ar", "sd", "pearl")
        }


@pytest.mark.parametrize("place", [place for place in PLACES if place != "interpret"])
def test_rounds_are_the_executors(world: FakeWorld, place: str) -> None:
    """Two at once, and one with penalties and a filter."""
    expected = of_executor()
    options = {"device": "cuda", "max_num_seqs": 2, "judge": "coupled"} | PLACES[place]
    with engine_of(**options) as engine:
        assert engine.stats()["drafter"]["kind"] == "parallel"
        assert all(lanes.drafts_at_once for lanes in engine.lanes.values())
        for strategy in ("sd", "pearl"):
            program = {"strategy": strategy, "gamma": 4}
            found = [*told(engine, *ASKED, **program), *told(engine, SHAPED, **program)]
            assert found == expected[strategy], strategy
            assert [text for text, *_ in found] == [text for text, *_ in expected["ar"]]
    assert max(share for _, _, share in expected["sd"]) > 0.7
