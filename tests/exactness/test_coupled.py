"""Shared noise: every request is, token for token, what plain decoding of the target says alone."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from beside import candidates_are_the_rules, candidates_say_what_ar_says
from processed import (
    lookup_rounds_are_the_rules,
    lookup_tokens_are_those_of_ar,
    nothing_outlives_a_request,
    random_request,
    rounds_are_the_rules,
    tokens_are_those_of_ar,
)
from tiny_pairs import TINY, Pair

from pearl_rt import Engine, SamplingParams

CHAINS = ("chain", "eagle3 chain", "diffusion chain")


def test_every_request_is_what_ar_says_alone(exactness_runs: int) -> None:
    """Batches of 1 to 5, each request with its own parameters, window and seed."""
    tokens_are_those_of_ar(0, exactness_runs)


def test_every_round_is_the_rules(exactness_runs: int) -> None:
    """Both judges, so that the `ar` of the test above is the definition's."""
    rounds_are_the_rules(10_000, exactness_runs)


def test_a_parallel_draft_says_what_ar_says_alone(exactness_runs: int) -> None:
    """Windows of one pass, with masks of any id."""
    tokens_are_those_of_ar(50_000, exactness_runs, "parallel")


def test_a_parallel_draft_drafts_by_the_rules(exactness_runs: int) -> None:
    """Verdict for verdict: each row is behind the text and the masks, and no mask stays in the cache."""
    rounds_are_the_rules(60_000, exactness_runs, "parallel")


def test_a_diffusion_draft_says_what_ar_says_alone(exactness_runs: int) -> None:
    """Windows of several passes, with masks of any id."""
    tokens_are_those_of_ar(90_000, exactness_runs, "diffusion")


def test_a_diffusion_draft_drafts_by_the_rules(exactness_runs: int) -> None:
    """Verdict for verdict: rows of a window see each other, and none of them stays in the cache."""
    rounds_are_the_rules(100_000, exactness_runs, "diffusion")


def test_a_head_says_what_ar_says_alone(exactness_runs: int) -> None:
    """A head that is fed the target's taps, of whatever ids."""
    tokens_are_those_of_ar(70_000, exactness_runs, "eagle3")


def test_a_head_drafts_by_the_rules(exactness_runs: int) -> None:
    """Verdict for verdict: each row is fed the taps of its place, and drafts ids of the target."""
    rounds_are_the_rules(80_000, exactness_runs, "eagle3")


def test_lookup_says_what_ar_says_alone(exactness_runs: int) -> None:
    """Beside other requests and behind earlier ones, whose answers it reads."""
    lookup_tokens_are_those_of_ar(30_000, exactness_runs)


def test_lookup_drafts_by_the_rules(exactness_runs: int) -> None:
    """Token for token what pearl_rt/reference/drafters/lookup.py drafts."""
    lookup_rounds_are_the_rules(40_000, exactness_runs)


@pytest.mark.parametrize("drafter", CHAINS)
def test_a_chain_says_what_ar_says_alone(exactness_runs: int, drafter: str) -> None:
    """Lookup and model in turns, in batches where requests differ."""
    lookup_tokens_are_those_of_ar(70_000, exactness_runs, drafter)


@pytest.mark.parametrize("drafter", CHAINS)
def test_a_chain_drafts_by_the_rules(exactness_runs: int, drafter: str) -> None:
    """Verdict for verdict: which of them drafts, what, and behind a cache that has caught up."""
    lookup_rounds_are_the_rules(80_000, exactness_runs, drafter)


def test_candidates_say_what_ar_says_alone(exactness_runs: int) -> None:
    """Several windows of each sequence: whichever is taken, its rows are where the next round reads them."""
    candidates_say_what_ar_says(90_000, exactness_runs)


def test_candidates_are_judged_by_the_rules(exactness_runs: int) -> None:
    """Verdict for verdict: which tokens begin windows, how each goes on, which is taken, and what replaces
    all of them.
    """
    candidates_are_the_rules(100_000, exactness_runs // 2)


def test_nothing_outlives_a_request(exactness_runs: int) -> None:
    nothing_outlives_a_request(20_000, exactness_runs)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right")


@pytest.fixture(scope="module")
def engine(pair: Pair) -> Iterator[Engine]:
    """A tiny real pair, one sequence at a time."""
    with pair.engine(max_model_len=96, num_threads=1, max_num_seqs=1) as made:
        yield made


def params_of(rng: random.Random) -> SamplingParams:
    """random_request's parameters, as a caller passes them."""
    asked = random_request(rng, TINY.vocab_size)
    names = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return SamplingParams(
        **{name: asked[name] for name in (*names, "temperature", "seed") if name in asked},
        max_tokens=40,
        min_tokens=asked.get("min_tokens", 0),
        logit_bias=dict(asked.get("logit_bias", [])),
        stop_token_ids=asked["stop_ids"],
        logprobs=rng.choice([None, 0, 3]),
    )


def test_a_real_pair(engine: Engine) -> None:
    """The whole path: text, ends and log-probabilities too."""
    rng = random.Random(3)
    for _ in range(12):
        prompt = [rng.randrange(TINY.vocab_size) for _ in range(rng.randint(1, 30))]
        params = params_of(rng)
        [want] = engine.generate(prompt, params, strategy="ar", judge="coupled")
        for strategy in ("sd", "pearl"):
            gamma = rng.randint(1, 8)
            [got] = engine.generate(prompt, params, strategy=strategy, gamma=gamma, judge="coupled")
            assert (got.token_ids, got.finish_reason) == (want.token_ids, want.finish_reason), params
            assert got.logprobs == want.logprobs, params


@pytest.mark.parametrize("drafter", ["model", "lookup", "chain", "candidates"])
def test_arrivals(pair: Pair, engine: Engine, exactness_runs: int, drafter: str) -> None:
    """Two hundred requests that come at any time, of any kind: each is what it is alone by plain decoding."""
    rng = random.Random(17)
    shape = {"max_model_len": 96, "num_threads": 2, "max_num_seqs": 4, "judge": "coupled"}
    own: dict[str, Any] = {"chain": {"draft_lookup": True}, "candidates": {"candidates": 3}}.get(
        drafter, {"drafter": drafter}
    )
    serial = "sd" if drafter == "candidates" else "pearl"  # of several windows none is ahead of a verdict
    with pair.engine(**shape, max_waiting=1000, **own) as several:
        asked = []
        for _ in range(max(200, exactness_runs)):
            prompt = [rng.randrange(TINY.vocab_size) for _ in range(rng.choice([1, 2, 9, 40]))]
            params = replace(params_of(rng), max_tokens=rng.choice([1, 2, 8, 40]), min_tokens=0)
            strategy, gamma = rng.choice(["ar", "sd", serial, None, None, None]), rng.choice([None, 1, 3, 8])
            asked.append((prompt, params, several.submit(prompt, params, strategy=strategy, gamma=gamma)))
            if rng.random() < 0.3:  # until some request has got on
                next(iter(rng.choice(asked)[2]), None)
        beside = 0
        for prompt, params, handle in asked:
            got = handle.result(60)
            [want] = engine.generate(prompt, params, strategy="ar", judge="coupled")
            assert (got.token_ids, got.finish_reason) == (want.token_ids, want.finish_reason), params
            assert got.logprobs == want.logprobs, params
            beside += not got.metrics.trace  # it was not alone
    assert beside > len(asked) / 2
