"""Several windows of a sequence, which begin with different tokens: the text is that of plain decoding, and
more of it stands in a round.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, Request, RequestError, SamplingParams
from pearl_rt.types.outputs import RequestOutput
from pearl_rt.types.structured_outputs import StructuredOutputsParams

PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73)), list(range(27))]
GREEDY, LOUD = SamplingParams(max_tokens=40), SamplingParams(temperature=0.8, max_tokens=40, seed=3)
EVERYTHING = replace(LOUD, top_k=40, top_p=0.95, repetition_penalty=1.2, presence_penalty=0.3, logprobs=2)
SHAPE: dict[str, Any] = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right")


def told(outputs: list[RequestOutput]) -> list[tuple[Any, ...]]:
    return [(one.token_ids, one.finish_reason, one.logprobs) for one in outputs]


def rounds(outputs: list[RequestOutput]) -> int:
    return sum(output.metrics.rounds for output in outputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_tokens_are_those_of_ar(pair: Pair, dtype: str, prefix_caching: bool) -> None:
    """Also again, behind prompts whose blocks are found, and in blocks that a sequence fills and leaves."""
    own = {"dtype": dtype, "prefix_caching": prefix_caching, "judge": "coupled"}
    with pair.engine(**SHAPE, **own, candidates=3) as engine:
        for params in (GREEDY, LOUD, EVERYTHING):
            want = told(engine.generate(PROMPTS, params, strategy="ar"))
            for gamma in (1, 4, 16):
                assert told(engine.generate(PROMPTS, params, strategy="sd", gamma=gamma)) == want, gamma


def test_a_seed_is_a_text(pair: Pair) -> None:
    """By rejection, alone and beside others."""
    program = {"strategy": "sd", "gamma": 4, "judge": "rejection"}
    with pair.engine(**SHAPE, candidates=4) as engine:
        together = told(engine.generate(PROMPTS, EVERYTHING, **program))
        alone = [told(engine.generate(prompt, EVERYTHING, **program))[0] for prompt in PROMPTS]
    assert alone == together


def test_more_stands_in_a_round(pair: Pair) -> None:
    """The more candidates, the fewer rounds: greedy, and with the target's noise."""
    for params in (GREEDY, LOUD):
        found = []
        for candidates in (1, 2, 8):
            with pair.engine(**SHAPE, candidates=candidates, judge="coupled") as engine:
                found.append(rounds(engine.generate(PROMPTS, params, strategy="sd", gamma=4)))
        assert found[0] > found[1] >= found[2], found


def test_the_target_may_draft_for_itself(pair: Pair) -> None:
    options = {**SHAPE, "drafter": "self", "skip_layers": [1], "candidates": 2, "judge": "coupled"}
    with Engine(pair.config, pair.target, **options) as engine:
        want = told(engine.generate(PROMPTS, LOUD, strategy="ar"))
        assert told(engine.generate(PROMPTS, LOUD, strategy="sd", gamma=4)) == want
        assert engine.stats()["drafter"]["kind"] == "self"


def test_the_program_is_chosen_among_those_that_can_run(pair: Pair) -> None:
    with pair.engine(**SHAPE, candidates=2) as engine:
        [output] = engine.generate(PROMPTS[1], GREEDY)
        assert output.metrics.strategy in ("ar", "sd") and len(output.token_ids) == 40
        assert set(engine.lanes) == {"shared"}


@pytest.mark.parametrize(("step", "more"), [(10**6, False), (0, True)], ids=["dear", "free"])
def test_their_number_is_weighed(pair: Pair, step: int, more: bool) -> None:
    """Where the planner chooses windows: rows that cost much leave one of each sequence, and rows that cost
    nothing all of them.
    """
    found = []
    for candidates in (1, 8):
        with pair.engine(**SHAPE, candidates=candidates, draft_lookup=False) as engine:
            lanes = engine.lanes["shared"]
            if candidates > 1:
                costs = [1000 + step * rows for rows in range(80)]
                lanes._branching.set_branch_costs(costs, [1])  # type: ignore[attr-defined]
            texts = []
            for prompt in PROMPTS:
                asked = {"max_tokens": 60, "temperature": 0.8, "seed": 3, "adapts": True, "shares": False}
                lanes.start("sd", Request(prompt, gamma=4, **asked), "coupled")
                texts.append([result.token_ids for result in results_of(lanes)])
            found.append(texts)
    one, several = ([list(chain.from_iterable(text)) for text in texts] for texts in found)
    assert one == several
    one_count, count = (sum(map(len, texts)) for texts in found)
    assert count < 0.9 * one_count if more else count == one_count, (count, one_count)


def results_of(lanes: Any) -> list[Any]:
    """All of a run."""
    results: list[Any] = []
    while (some := lanes.next(20_000)) is not None:
        results += some
    return results


@pytest.mark.parametrize("candidates", [0, -1, 9, 1.5, "2", None])
def test_numbers_that_are_none(pair: Pair, candidates: Any) -> None:
    words = "1 for one window of a sequence, to 8|must be an integer"
    with pytest.raises(ConfigError, match=f"candidates .*({words})"):
        pair.engine(**SHAPE, candidates=candidates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drafter": "lookup"}, r"candidates 2 begin with .*'lookup', which has none: pass draft=DIRECTORY"),
        ({"drafter": "none"}, r"candidates 2 .* the drafter is 'none'"),
        ({"draft_lookup": True}, r"candidates 2 .* a lookup has none: drop draft_lookup"),
        ({"draft_stop": "adaedl"}, r"draft_stop 'adaedl' ends one window .* candidates 2"),
        ({"strategy": "pearl"}, r"strategy 'pearl' .*candidates 2 .*pass strategy='sd'"),
        ({"placement": "split"}, r"placement 'split' .*candidates 2 .*placement='shared', or candidates=1"),
        (
            {"device": "cuda", "draft_device": "cuda:1"},
            r"candidates 2: .* need both models on one device, and draft_device is 'cuda:1': drop it",
        ),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_where_they_cannot_be(pair: Pair, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pair.engine(**SHAPE | options, candidates=2)


def test_a_parallel_draft_has_one_window() -> None:
    pair = Pair.make("half-right")
    draft = replace(pair.config, pard_token=5)
    options: dict[str, Any] = {**SHAPE, "candidates": 2}
    with pytest.raises(ConfigError, match=r"'parallel', whose rows are of one window: pass draft_parallel="):
        Engine(pair.config, pair.target, draft, pair.draft, **options)
    with Engine(pair.config, pair.target, draft, pair.draft, **options, draft_parallel=False) as engine:
        assert len(engine.generate([3], GREEDY, strategy="sd", gamma=3)[0].token_ids) == 40


def test_requests_that_need_one_window(pair: Pair) -> None:
    with pair.engine(**SHAPE, candidates=2) as engine:
        for stop, message in (("adaedl", "candidates 2 there are several, all as long"), ("none", "")):
            params = replace(GREEDY, draft_stop=stop)
            if message:
                with pytest.raises(RequestError, match=message):
                    engine.generate([3], params)
            else:
                assert engine.generate([3], params)[0].token_ids
        with pytest.raises(RequestError, match=r"strategy 'pearl' .*candidates 2"):
            engine.generate([3], GREEDY, strategy="pearl")
        form = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[0-9]+"))
        with pytest.raises(RequestError, match=r"structured_outputs .*candidates is 2: leave them out"):
            engine.generate([3], form)
