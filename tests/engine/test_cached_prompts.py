"""Engines that find prompts in the KV cache: the bits of one that computes them, and what they report."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tiny_pairs import SMALL, Pair

from pearl_rt import ConfigError, Engine, SamplingParams

LENGTH = 256
BLOCK = 16
OPTIONS: dict[str, Any] = {"max_model_len": LENGTH, "num_threads": 1, "judge": "coupled", "max_num_seqs": 3}
KINDS = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "weights": "int8", "draft_weights": "int4"},
    "lookup": {"drafter": "lookup"},
    "small": {"kv_cache_tokens": 320},
}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right")


def prompts_of(rng: random.Random, texts: list[list[int]]) -> list[list[int]]:
    """Three prompts that go on from earlier texts, or from a part of them, two of them often equal."""
    made = []
    for _ in range(3):
        base = list(rng.choice(texts)) if texts and rng.random() < 0.8 else []
        base = base[: rng.choice([len(base), rng.randint(0, len(base))])][:180]
        made.append(base + [rng.randrange(256) for _ in range(rng.choice([1, 5, 40]))])
    return [made[0], made[rng.randrange(2)], made[2]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_with_and_without(pair: Pair, kind: str) -> None:
    rng = random.Random(3)
    with (
        pair.engine(**{**OPTIONS, **KINDS[kind]}) as engine,
        pair.engine(**{**OPTIONS, **KINDS[kind]}, prefix_caching=False) as without,
    ):
        found = 0
        texts: list[list[int]] = []
        for turn in range(12):
            prompts = prompts_of(rng, texts)
            params = SamplingParams(
                temperature=rng.choice([0.0, 0.9]), seed=turn, max_tokens=rng.choice([1, 9, 33]), logprobs=2
            )
            strategy = rng.choice(["ar", "sd"] if kind == "lookup" else ["ar", "sd", "pearl"])
            got = engine.generate(prompts, params, strategy=strategy)
            want = without.generate(prompts, params, strategy=rng.choice(["ar", "sd"]))
            for one, other in zip(got, want, strict=True):
                assert (one.token_ids, one.text) == (other.token_ids, other.text)
                assert one.logprobs == other.logprobs
                assert other.num_cached_tokens is None
                assert one.num_cached_tokens is not None and one.num_cached_tokens % BLOCK == 0
                assert 0 <= one.num_cached_tokens < len(one.prompt_token_ids)
                found += one.num_cached_tokens > 0
                texts.append(one.prompt_token_ids + one.token_ids)
        assert found > 8


def test_figures(pair: Pair) -> None:
    prompt = [(7 * place) % 256 for place in range(100)]
    with pair.engine(**OPTIONS, strategy="sd") as engine:
        assert engine.stats()["prefix_cache"] == {"is_on": True, "hit_rate": None}
        params = SamplingParams(max_tokens=4)
        first, second = (engine.generate(prompt, params)[0] for _ in range(2))
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 96)
        assert second.metrics.num_cached_tokens == 96
        [scored] = engine.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))
        assert scored.num_cached_tokens is None and len(scored.prompt_logprobs or ()) == 100
        totals = engine.stats()["totals"]
        assert (totals["prefix_cache_queries"], totals["prefix_cache_hits"]) == (200, 96)
        assert engine.stats()["prefix_cache"]["hit_rate"] == 0.48


def test_n_answers_feed_their_prompt_once(pair: Pair) -> None:
    prompt = [(5 * place) % 256 for place in range(70)]
    with pair.engine(**OPTIONS, strategy="sd") as engine:
        params = SamplingParams(n=3, temperature=1.0, max_tokens=20)
        assert [one.num_cached_tokens for one in engine.generate(prompt, params)] == [0, 64, 64]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ar", "pearl"])
def test_on_the_kernels(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat of two turns: the same bits, and passes for what is new alone."""
    from pearl_rt.device.steps import LaneSteps

    passes: list[int] = []
    own = LaneSteps.prefill_chunk
    monkeypatch.setattr(LaneSteps, "prefill_chunk", lambda self: (passes.append(1), own(self))[1])
    pair = Pair.make("half-right", **SMALL | {"max_position_embeddings": 128})
    options = {"device": "interpret", "max_model_len": 128, "judge": "coupled", "strategy": strategy}
    with pair.engine(**options) as engine, pair.engine(**options, prefix_caching=False) as without:
        text = [(7 * place) % 32 for place in range(40)]
        params = SamplingParams(max_tokens=4, temperature=0.9, seed=5, logprobs=1)
        for turn in range(2):
            fed = []
            outputs = []
            for one in (engine, without):
                passes.clear()
                outputs += one.generate(text, params)
                fed.append(len(passes))
            got, want = outputs
            assert (got.token_ids, got.logprobs) == (want.token_ids, want.logprobs)
            assert got.num_cached_tokens == (0 if turn == 0 else (len(text) - 1) // 16 * 16)
            assert want.num_cached_tokens is None
            assert fed[0] == fed[1] if turn == 0 else fed[0] <= (1 if strategy == "ar" else 2) < fed[1]
            text = text + got.token_ids + [3, 2, 1]
        assert engine.stats()["prefix_cache"]["is_on"] and not without.stats()["prefix_cache"]["is_on"]


def test_measuring_leaves_nothing_behind(pair: Pair) -> None:
    """The prompt of the timing is known to no request."""
    made_up = [(7 * place + 1) % 288 for place in range(16)]
    with pair.engine(**OPTIONS) as engine:
        for strategy in ("ar", "sd"):
            [output] = engine.generate([*made_up * 3], SamplingParams(max_tokens=2), strategy=strategy)
            assert output.num_cached_tokens == 0


def test_off(pair: Pair) -> None:
    with pair.engine(**OPTIONS, prefix_caching=False) as engine:
        stats = engine.stats()
        assert stats["prefix_cache"] == {"is_on": False, "hit_rate": None}
        assert stats["kv_blocks"]["block_size"] == LENGTH
        for _ in range(2):
            [output] = engine.generate([1] * 100, SamplingParams(max_tokens=2))
            assert output.num_cached_tokens is None
        assert engine.stats()["prefix_cache"]["hit_rate"] is None


def test_a_wrong_value(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="prefix_caching must be True or False, got 'yes'"):
        Engine(pair.config, pair.target, prefix_caching="yes")  # type: ignore[arg-type]
