"""Windows of a draft model that end early: the text is that of plain decoding, with fewer drafts in vain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, RequestError, SamplingParams
from pearl_rt.strategy.program_choice import Capabilities
from pearl_rt.types.outputs import RequestOutput
from pearl_rt.types.request import Request, check_plain

STOPS = ["confidence:0.5", "adaedl", "adaedl:0.7", "marginal", "marginal:0.2", "thompson"]
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


def test_windows_follow_a_chance_that_is_learned(pair: Pair) -> None:
    """By "thompson": long ones of a draft that is right, short ones of one that is not."""
    share = {}
    for draft in ("equal", "unrelated"):
        with Pair.make(draft).engine(**SHAPE, draft_stop="thompson") as engine:
            metrics = engine.generate([3, 4], SamplingParams(max_tokens=120), strategy="sd", gamma=8)[
                0
            ].metrics
        share[draft] = metrics.judged / metrics.rounds
    assert share["equal"] > 5 and 1 <= share["unrelated"] < 1.5


def test_a_draft_that_is_never_right_is_left_alone() -> None:
    """ "marginal" drafts nothing but a try every 16th round."""
    wrong = Pair.make("unrelated")
    with wrong.engine(**SHAPE, draft_stop="marginal:0.5") as engine:
        [output] = engine.generate([3, 4], SamplingParams(max_tokens=120), strategy="sd", gamma=8)
    assert 0 < output.metrics.judged < 30


@pytest.mark.parametrize("stop", ["confidence", "confidence:P", "confidence:0", "adaedl:1.5", "adaedl:", 3])
def test_stops_that_are_none(pair: Pair, stop: Any) -> None:
    named = r"draft_stop .*(confidence:0.4|pass one of 'auto', 'none', 'adaedl')"
    with pytest.raises(ConfigError, match=named):
        pair.engine(**SHAPE, draft_stop=stop)
    with pytest.raises(RequestError, match=named):
        SamplingParams(draft_stop=stop)


@pytest.mark.parametrize("drafter", ["lookup", "none"])
def test_where_they_cannot_run(pair: Pair, drafter: str) -> None:
    why = {"lookup": "'lookup', which ends its windows by itself", "none": "'none', which drafts nothing"}
    with pytest.raises(ConfigError, match=f"'adaedl' .* and the drafter is {why[drafter]}"):
        Engine(pair.config, pair.target, drafter=drafter, draft_stop="adaedl")
    with pair.engine(drafter=drafter, **SHAPE) as engine:
        with pytest.raises(RequestError, match=f"'thompson' .* and the drafter is {why[drafter]}"):
            engine.generate([3, 4], SamplingParams(draft_stop="thompson"))
        none, own = (SamplingParams(max_tokens=9, draft_stop=stop) for stop in ("none", None))
        assert texts(engine.generate([3, 4], none)) == texts(engine.generate([3, 4], own))


def test_devices_that_have_none() -> None:
    """tests/engine/every_parameter has requests there."""
    kernels = Capabilities("model")
    for stop in (None, "none"):
        assert not kernels.narrowed(kernels.everything, None, None, None, stop).is_selective
    with pytest.raises(ConfigError, match="'adaedl' runs on the CPU only so far"):
        kernels.narrowed(kernels.everything, None, None, None, "adaedl")
    check_plain(Request([1, 2], draft_stop="none"))
    with pytest.raises(RequestError, match="draft_stop: not to be had from a pair's calls"):
        check_plain(Request([1, 2], draft_stop="thompson"))


def test_a_request_has_a_rule_of_its_own(pair: Pair) -> None:
    """Side by side in one run, whatever the engine's rule is: the windows of an engine with that rule."""
    program = {"strategy": "sd", "gamma": 8, "judge": "rejection"}
    rules = [None, "none", *STOPS]
    for stop in ("none", "confidence:0.9"):
        want = {}
        for rule in rules:
            with pair.engine(**SHAPE, draft_stop=stop if rule is None else rule) as engine:
                want[rule] = told(engine.generate(PROMPTS[1], LOUD, **program))
        with pair.engine(**SHAPE, draft_stop=stop) as engine:
            asked = [replace(LOUD, draft_stop=rule) for rule in rules]
            outputs = engine.generate([PROMPTS[1]] * len(rules), asked, **program)
        assert {rule: [one] for rule, one in zip(rules, told(outputs), strict=True)} == want
        assert len(set(map(str, want.values()))) > 3


def test_programs_are_chosen_for_the_rule_of_a_request(pair: Pair) -> None:
    """A window that ends where it becomes doubtful may be longer than one that does not."""
    cpu = Capabilities("model", ends_windows=True)
    for engine, request, is_selective in (
        ("none", None, False),
        ("none", "thompson", True),
        ("adaedl", None, True),
        ("adaedl", "none", False),
    ):
        own = cpu.narrowed(cpu.everything, None, None, None, engine)
        assert cpu.narrowed(own, "sd", 4, None, request).is_selective is is_selective
    lookup = Capabilities("lookup")
    assert lookup.narrowed(lookup.everything, None, None, None, "none").is_selective
