"""Several windows of a sequence in captured steps, on the fake driver: the text is plain decoding's, and the
rounds are the CPU's with as many windows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from typing import Any

import fake_cuda
import pytest
import torch
from fake_gpu import FakeWorld, fresh
from test_cuda_engine import LONG, MAX_LEN, ONE, SMALL, pair_of
from tiny_pairs import Pair
from torch.utils._python_dispatch import TorchDispatchMode

from pearl_rt import ConfigError, Engine, RequestError, SamplingParams
from pearl_rt.checkpoint.source import ModelSource
from pearl_rt.device.drafts.windows_beside import BesideState, pages_of_window
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.pair_sizes import PairSizes
from pearl_rt.strategy.program import MAX_GAMMA
from pearl_rt.strategy.step_timing import NOMINAL_TIMES

WINDOWS = 3
ASKED = (
    (ONE, SamplingParams(max_tokens=23)),  # to max_model_len, over the edge of a page
    (LONG[:6], SamplingParams(temperature=0.9, seed=6, max_tokens=12)),
    (LONG, SamplingParams(temperature=0.7, seed=3, max_tokens=5)),  # joins: there are two slots
)

pytestmark = [pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler"), pytest.mark.slow]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs; step times are not measured, which would take rounds of every program."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_TIMES)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


def engine_of(**options: Any) -> Engine:
    given = {"max_model_len": MAX_LEN, "judge": "coupled", "candidates": WINDOWS} | options
    return pair_of().engine(**given)


def told(engine: Engine, *asked: tuple[list[int], SamplingParams], **program: Any) -> list[tuple[Any, ...]]:
    handles = [engine.submit(prompt, params, **program) for prompt, params in asked]
    outputs = [handle.result(300) for handle in handles]
    return [(one.token_ids, one.metrics.rounds, one.metrics.acceptance_rate) for one in outputs]


@cache
def of_executor(strategy: str, candidates: int) -> list[tuple[Any, ...]]:
    """The rounds of each request alone."""
    options = {"device": "cpu", "num_threads": 1, "placement": "shared", "candidates": candidates}
    with engine_of(**options) as engine:
        gamma = None if strategy == "ar" else 4
        return [told(engine, asked, strategy=strategy, gamma=gamma)[0] for asked in ASKED]


@pytest.mark.parametrize("form", ["events", "graph", "eager"])
def test_rounds_are_the_executors(world: FakeWorld, form: str) -> None:
    """Two at once, and one that joins."""
    expected = of_executor("sd", WINDOWS)
    with engine_of(device="cuda", max_num_seqs=2, form=form) as engine:
        assert not any(lanes.overlaps for lanes in engine.lanes.values())  # no "pearl" is timed
        found = told(engine, *ASKED, strategy="sd", gamma=4)
    assert found == expected
    assert [text for text, *_ in found] == [text for text, *_ in of_executor("ar", WINDOWS)]
    rounds = [sum(rounds for _, rounds, _ in each) for each in (found, of_executor("sd", 1))]
    assert rounds[0] < rounds[1]  # windows beside the first were taken


def test_a_target_that_drafts_for_itself(world: FakeWorld) -> None:
    """Without one of its layers, whose windows are taken too."""
    pair = Pair.make("half-right", **SMALL | {"num_hidden_layers": 2})
    options: dict[str, Any] = {"drafter": "self", "skip_layers": [0], "max_model_len": MAX_LEN}
    options |= {"judge": "coupled", "candidates": WINDOWS, "device": "cuda"}
    with Engine(pair.config, pair.target, **options) as engine:
        texts = [
            told(engine, ASKED[1], strategy=strategy, gamma=gamma)[0][0]
            for strategy, gamma in (("ar", None), ("sd", 2))
        ]
    assert texts[0] == texts[1]


def test_what_is_refused(world: FakeWorld) -> None:
    for draft_device in ("cuda:1", "cpu"):
        with pytest.raises(ConfigError, match=r"candidates 3: .* need both models on one device, .* drop it"):
            engine_of(device="cuda", draft_device=draft_device)
    with engine_of(device="cuda", judge="rejection") as engine:
        with pytest.raises(RequestError, match=r"judge 'rejection' above .* pass judge='coupled'"):
            engine.generate(ONE, SamplingParams(temperature=0.8, max_tokens=2), strategy="sd", gamma=2)
        with pytest.raises(RequestError, match=r"filters and penalties .* leave them out"):
            engine.generate(ONE, SamplingParams(repetition_penalty=1.4, max_tokens=2), strategy="sd", gamma=2)


class NothingNew(TorchDispatchMode):
    """Fails where an operation of torch gives memory that was not among what it was given."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr()
            for one in torch.utils._pytree.tree_leaves((args, kwargs or {}))
            if isinstance(one, torch.Tensor)
        }
        for one in torch.utils._pytree.tree_leaves(made):
            if isinstance(one, torch.Tensor):
                assert one.untyped_storage().data_ptr() in given, f"{func} allocates"
        return made


def test_steps_allocate_nothing(world: FakeWorld) -> None:
    """Where windows are given what their slots have, and where one is taken."""
    with engine_of(device="cuda", max_num_seqs=2) as engine:
        steps = next(iter(engine.lanes.values())).target_steps
        state = steps.state
        assert isinstance(state, BesideState)
        state.whole.committed.fill_(9)
        state.chosen.fill_(1)
        with NothingNew():
            state.spread(steps.model.kv_cache)
            state.take(4)


def test_memory_is_counted() -> None:
    """Windows beside the first have rows of logits, and pages, of which one is read by none."""
    pair = pair_of()
    config, model = pair.config, ModelSource("target", pair.config, "float32", pair.target)
    pool = KvPool(16, 6, MAX_LEN)
    sizes = [
        PairSizes.of(config, config, pool, num_slots=2, prefill_chunk=16, candidates=candidates)
        for candidates in (1, WINDOWS)
    ]
    cache, rows = "96 tokens of KV cache", "logits and state"
    first, several = (one.memory([model]) for one in sizes)
    own = 2 * (WINDOWS - 1) * pages_of_window(MAX_GAMMA, 16) + 1
    assert several[cache] * 6 == first[cache] * (6 + own)
    beside = 2 * (WINDOWS - 1) * (MAX_GAMMA + 1) * config.vocab_size * 4
    assert beside < several[rows] - first[rows]
