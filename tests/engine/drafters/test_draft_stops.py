"""Windows of a draft model that end early: the text is that of plain decoding, with fewer drafts in vain."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, SamplingParams
from pearl_rt.types.outputs import RequestOutput

STOPS = ["confidence:0.5", "adaedl", "adaedl:0.7", "marginal", "marginal:0.2"]
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73))]
GREEDY, LOUD = SamplingParams(max_tokens=40), SamplingParams(temperature=0.5, max_tokens=40, seed=3)
LEAST, MOST = "confidence:0.000001", "confidence:0.9999999"
SHAPE: dict[str, Any] = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.make("half-right")


def told(outputs: list[RequestOutput]) -> list[tuple[list[int], str, int, int]]:
    """What a seed fixes: tokens, end, rounds and drafts."""
    return [(o.token_ids, o.finish_reason, o.metrics.rounds, o.metrics.judged) for o in outputs]


def texts(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("stop", STOPS)
def test_every_program_is_ar_to_the_bit(pair: Pair, stop: str) -> None:
    with pair.engine(**SHAPE, draft_stop=stop, judge="coupled") as engine:
        for params in (GREEDY, LOUD):
            want = texts(engine.generate(PROMPTS, params, strategy="ar"))
            for strategy, placement in (("sd", "shared"), ("pearl", "shared"), ("pearl", "split")):
                program = {"strategy": strategy, "placement": placement, "gamma": 8}
                assert texts(engine.generate(PROMPTS, params, **program)) == want, program


@pytest.mark.parametrize("stop", STOPS)
def test_a_seed_is_a_text(pair: Pair, stop: str) -> None:
    """By rejection the tokens depend on the windows: those depend on no clock, on no neighbour, and on
    nothing that was asked before.
    """
    program = {"strategy": "sd", "gamma": 8, "judge": "rejection"}
    with pair.engine(**SHAPE, draft_stop=stop) as engine, pair.engine(**SHAPE, draft_stop=stop) as other:
        together = told(engine.generate(PROMPTS, LOUD, **program))
        alone = [told(other.generate(prompt, LOUD, **program))[0] for prompt in reversed(PROMPTS)]
        assert alone[::-1] == together == told(engine.generate(PROMPTS, LOUD, **program))


def test_windows_are_shorter(pair: Pair) -> None:
    """From whole ones to those of one token."""
    found = {}
    for stop, gamma in (("none", 8), ("none", 1), (LEAST, 8), ("confidence:0.4", 8), (MOST, 8)):
        with pair.engine(**SHAPE, draft_stop=stop) as engine:
            outputs = engine.generate(PROMPTS, LOUD, strategy="sd", gamma=gamma, judge="coupled")
        found[stop, gamma] = sum(output.metrics.rounds for output in outputs)
    assert found["none", 8] == found[LEAST, 8] < found["confidence:0.4", 8] < found[MOST, 8]
    assert found[MOST, 8] == found["none", 1]


def test_a_draft_that_is_never_right_is_left_alone() -> None:
    """ "marginal" drafts nothing but a try every 16th round."""
    wrong = Pair.make("unrelated")
    with wrong.engine(**SHAPE, draft_stop="marginal:0.5") as engine:
        [output] = engine.generate([3, 4], SamplingParams(max_tokens=120), strategy="sd", gamma=8)
    assert 0 < output.metrics.judged < 30


@pytest.mark.parametrize("stop", ["confidence", "confidence:P", "confidence:0", "adaedl:1.5", "adaedl:", 3])
def test_stops_that_are_none(pair: Pair, stop: Any) -> None:
    with pytest.raises(ConfigError, match=r"draft_stop .*(confidence:0.4|pass one of 'none', 'adaedl')"):
        pair.engine(**SHAPE, draft_stop=stop)


def test_where_they_cannot_run(pair: Pair) -> None:
    with pytest.raises(ConfigError, match=r"the drafter is 'lookup', which ends its windows by itself"):
        Engine(pair.config, pair.target, draft_stop="adaedl")
    with pytest.raises(ConfigError, match=r"the drafter is 'none', which drafts nothing"):
        Engine(pair.config, pair.target, drafter="none", draft_stop="adaedl")
    with pytest.raises(ConfigError, match="'adaedl' runs on the CPU only so far, and the target is on"):
        pair.engine(draft_stop="adaedl", device="interpret")
