"""A lookup on the host drafts for a target on the kernels: in the interpreter, and on fake GPUs.

The text is that of plain decoding; by rejection it is the definition's.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import fake_cuda
import pytest
from fake_gpu import FakeWorld, fresh
from table_pairs import table_of, table_pair
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, RequestError, RequestOutput, SamplingParams
from pearl_rt.reference.drafters.lookup import Lookup
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.noise import Floats
from pearl_rt.reference.processors import Transform
from pearl_rt.reference.round import Limits, decode
from pearl_rt.strategy.step_timing import NOMINAL_LOOKUP

MAX_LEN = 48
PROMPT = [11, 12, 13, 14] * 3
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_LEN,
}
GREEDY = SamplingParams(max_tokens=9)
SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=9)
CHANGED = replace(SAMPLED, top_k=9, repetition_penalty=1.2, logit_bias={5: 1.5}, logprobs=1)

needs_compiler = pytest.mark.skipif(
    not fake_cuda.has_compiler(), reason="no C++ compiler for the fake driver"
)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("equal", **SMALL)


def engine_of(pair: Pair, device: str, **options: Any) -> Engine:
    known = {"drafter": "lookup", "max_model_len": MAX_LEN, "strategy": "sd", "gamma": 4} | options
    return Engine(pair.config, pair.target, device=device, **known)


def told(engine: Engine, params: SamplingParams, judge: str) -> tuple[list[int], int]:
    """The answer's tokens, and the rounds that it took."""
    [output] = engine.generate(PROMPT, params, judge=judge)
    return output.token_ids, output.metrics.rounds


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, CHANGED], ids=["greedy", "sampled", "changed"])
def test_the_text_is_that_of_plain_decoding(pair: Pair, params: SamplingParams) -> None:
    """The second time it is found among earlier answers, so that windows stand."""
    with engine_of(pair, "interpret") as engine:
        [plain] = engine.generate(PROMPT, params, strategy="ar", judge="coupled")
        first, second = (told(engine, params, "coupled") for _ in range(2))
        assert first[0] == second[0] == plain.token_ids
        [ahead] = engine.generate(PROMPT, params, strategy="pearl", judge="coupled")
        assert ahead.token_ids == plain.token_ids and ahead.metrics.accepted > 3
        assert second[1] < plain.metrics.rounds / 2
        drafter = engine.stats()["drafter"]
        assert (drafter["kind"], engine.stats()["device"]["draft"]) == ("lookup", "cpu")
        assert drafter["acceptance"] > 0.3


class Deaf(Lookup):
    """A lookup that hears nothing of what the target said at rejected rows."""

    def told(self, committed: Sequence[int], next_token: int, rows: Sequence[Floats]) -> None:
        pass


@pytest.mark.parametrize("top_k", [0, 3])
def test_rejection_is_the_definitions(top_k: int) -> None:
    """A model of a table, which says the same few things again and again, so that drafts stand and fall."""
    pair = table_pair(7, reach=5.0)
    table, most = table_of(pair.target), MAX_LEN
    judged = accepted = 0
    options: dict[str, Any] = {"max_model_len": most, "drafter": "lookup", "strategy": "sd", "gamma": 3}
    with Engine(pair.config, pair.target, device="interpret", lookup_pool=0, **options) as engine:
        for seed in range(6):
            transform = Transform(temperature=0.8, top_k=top_k)
            shape = "sd", 3, Limits(most), ReferenceJudge("rejection", 0.8, seed)
            rows = partial(row_of, table, transform)
            wanted = decode(rows, Deaf(), [1], *shape)  # type: ignore[arg-type]
            params = SamplingParams(temperature=0.8, top_k=top_k, seed=seed, max_tokens=most)
            [found] = engine.generate([1], params, judge="rejection")
            assert found.token_ids == [token for each in wanted for token in each.token_ids]
            assert found.metrics.judged == sum(each.accept_len < each.num_judged for each in wanted) + sum(
                each.accept_len for each in wanted
            )
            judged, accepted = judged + found.metrics.looked_up.judged, accepted + found.metrics.accepted
    assert 10 < accepted < judged - 10


def row_of(table: Floats, transform: Transform, prefix: Sequence[int]) -> Floats:
    return transform.row(table[prefix[-1]], prefix)


def test_prompts_are_found_again(pair: Pair) -> None:
    """The target's KV blocks, beside a drafter that has none."""
    prompt = [*range(1, 20)]
    with engine_of(pair, "interpret") as engine:
        first, second = (engine.generate(prompt, GREEDY)[0] for _ in range(2))
        assert engine.stats()["prefix_cache"]["is_on"]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 16)
    assert first.token_ids == second.token_ids


def test_what_it_cannot_do(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="placement 'split' needs a draft model"):
        engine_of(pair, "interpret", placement="split")
    with engine_of(pair, "interpret", drafter="auto", strategy="auto", gamma=None) as engine:
        assert engine.stats()["drafter"]["kind"] == "none"
    with engine_of(pair, "interpret") as engine:  # but the target's own rounds may be launched
        engine.round("ar")
        with pytest.raises(RequestError, match="gamma"):
            engine.round("sd", 3)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """Two GPUs; step times are not measured, which would take rounds of every program."""
    monkeypatch.setattr("pearl_rt.backends.cuda_lanes.measure", lambda lanes: NOMINAL_LOOKUP)
    yield from fresh(fake_cuda.load(), monkeypatch)
    gc.collect()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("form", ["events", "graph", "eager"])
def test_requests_that_join_on_a_gpu(world: FakeWorld, pair: Pair, form: str) -> None:
    """Four in two slots, two of which ask for what was answered before."""
    asked = (([7], CHANGED), (PROMPT, GREEDY), ([3, 4, 5], SAMPLED), ([7], CHANGED))
    with engine_of(pair, "cpu", num_threads=1, drafter="none", strategy="ar", gamma=None) as native:
        alone = [native.generate(list(ids), params, judge="coupled")[0] for ids, params in asked]
    with engine_of(pair, "cuda", form=form, max_num_seqs=2, judge="coupled") as engine:
        (lanes,), joined = engine.lanes.values(), threading.Event()
        submit = lanes.submit
        lanes.submit = lambda one: (submit(one), joined.set())[0]  # type: ignore[method-assign]
        with world.lock:  # no kernel runs before the second is there
            handles = [engine.submit(list(ids), params) for ids, params in asked]
            assert joined.wait(60)
        found: list[RequestOutput] = [handle.result(120) for handle in handles]
        again = engine.generate(PROMPT, GREEDY)[0]
        assert engine.stats()["device"] == {"target": "cpu (Fake 0)", "draft": "cpu"}
    for one, wanted in zip([*found, again], [*alone, alone[1]], strict=True):
        assert (one.token_ids, one.finish_reason) == (wanted.token_ids, wanted.finish_reason)
    assert again.metrics.rounds < alone[1].metrics.rounds / 2
