"""Answers that have a form, on scripted executors: every program gives the rule's rounds with masked rows.

The form is an automaton in Python, so that neither llguidance nor a tokenizer is needed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import CAPACITY, VOCAB, Bench, logits_after, rounds_of, tokens_of

from pearl_rt import _C
from pearl_rt.errors import RequestError
from pearl_rt.reference.judge import ReferenceJudge
from pearl_rt.reference.processors import Transform
from pearl_rt.reference.round import Limits, RoundResult, decode
from pearl_rt.strategy.program import PLACEMENTS, STRATEGIES

EOS = 0
STATES = 5


def spelling(token: int) -> int:
    """Another token with the same text."""
    return 1 + token % 5


class Automaton:
    """A form: from each state some tokens lead to others. State 0 is the first; from the last ones the end of
    text is allowed too. spells: where one token alone may stand the matcher takes another one too, as of two
    tokens that spell the same text.
    """

    vocab_size = VOCAB

    def __init__(self, seed: int, *, forces: bool, branches: int = 4, spells: bool = False) -> None:
        rng = random.Random(seed)
        self.forces, self.spells = forces, spells
        self.next = [
            {token: rng.randrange(STATES) for token in rng.sample(range(1, VOCAB), rng.randint(1, branches))}
            for _ in range(STATES)
        ]
        self.ends = {STATES - 1, rng.randrange(STATES)}

    def state(self, tokens: Sequence[int]) -> int | None:
        state = 0
        for token in tokens:
            following = self.next[state]
            if self.spells and state not in self.ends and [*map(spelling, following)] == [token]:
                [token] = following
            if token not in following:
                return None
            state = following[token]
        return state

    def allowed(self, tokens: Sequence[int]) -> list[int] | None:
        state = self.state(tokens)
        return None if state is None else [*self.next[state], *([EOS] if state in self.ends else [])]

    def is_fixed(self, tokens: Sequence[int]) -> bool:
        return self.spells and len(self.allowed(tokens) or ()) == 1

    def takes(self, tokens: Sequence[int], token: int) -> bool:
        """What the matcher takes in, which is more than may stand where it is_fixed."""
        allowed = self.allowed(tokens) or []
        return token != EOS and (token in allowed or (self.is_fixed(tokens) and token == spelling(*allowed)))

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """Up to three."""
        found: list[int] = []
        while self.forces and len(found) < 3:
            allowed = self.allowed([*tokens, *found])
            if allowed is None or len(allowed) != 1:
                break
            found += allowed
        return found

    def matcher(self) -> Matcher:
        return Matcher(self)


class Matcher:
    def __init__(self, form: Automaton) -> None:
        self.form, self.tokens = form, []
        self.steps = self.masks = 0

    def step(
        self, num_back: int, tokens: Sequence[int], skip: int, wanted: int, masks: memoryview
    ) -> tuple[int, list[int], bool, list[int]]:
        self.steps += 1
        assert num_back <= len(self.tokens)
        del self.tokens[len(self.tokens) - num_back :]
        rows = np.frombuffer(masks, np.uint32)  # of one word each
        fixed: list[int] = []
        taken = 0
        while True:
            is_fixed = taken >= skip and self.form.is_fixed(self.tokens)
            if is_fixed:
                rows[len(fixed)] = self.mask()
                fixed.append(taken)
            if taken == len(tokens) or not self.form.takes(self.tokens, tokens[taken]):
                break
            self.tokens.append(tokens[taken])
            taken += 1
        has_wanted = taken == wanted and not is_fixed
        if has_wanted:
            rows[len(fixed)] = self.mask()
        stands = taken == len(tokens)
        return taken, fixed, has_wanted, self.form.forced(self.tokens) if stands else []

    def mask(self) -> int:
        self.masks += 1
        return sum(1 << token for token in self.form.allowed(self.tokens) or ())


def expected(
    form: Automaton,
    strategy: str,
    target: Any,
    draft: Any,
    request: dict[str, Any],
    judge: str,
    longest: int,
    mask_token: int | None,
) -> list[RoundResult]:
    prompt = request["prompt_ids"]
    transform = Transform(
        request["temperature"],
        prompt_len=len(prompt),
        allowed=form.allowed,
        min_tokens=request["min_tokens"],
        masked_ids=[EOS],
        repetition_penalty=request["repetition_penalty"],
        logit_bias=request["logit_bias"],
    )
    limits = Limits(min(len(prompt) + request["max_tokens"], CAPACITY), {EOS})
    reference = ReferenceJudge(judge, request["temperature"], request["seed"], transform=transform)

    def forced(prefix: Sequence[int]) -> list[int]:
        return form.forced(prefix[len(prompt) :])

    rules = target, draft, prompt, strategy, request["gamma"], limits, reference, forced
    return decode(*rules, longest=longest, mask_token=mask_token)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    return {
        "request": {
            "prompt_ids": draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)),
            "gamma": draw(st.integers(1, 8)),
            "max_tokens": draw(st.sampled_from([1, 2, 5, 13, 30, 1000])),
            "eos_ids": [EOS],
            "temperature": draw(st.sampled_from([0.0, 0.7, 1.5])),
            "seed": draw(st.integers(0, 2**64 - 1)),
            "min_tokens": draw(st.sampled_from([0, 0, 4, 20])),
            "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.7])),
            "logit_bias": draw(st.sampled_from([(), ((EOS, 20.0), (3, -2.0))])),
        },
        "judge": draw(st.sampled_from(["rejection", "coupled"])),
        "strategy": draw(st.sampled_from(STRATEGIES)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
        "rule": draw(st.integers(0, 1000)),
        "divergence": draw(st.sampled_from([0.0, 0.1, 0.5])),
        "draft_vocab": draw(st.sampled_from([VOCAB, VOCAB + 5, VOCAB - 5])),
        "forces": draw(st.booleans()),
        "more": draw(st.sampled_from([0, 1, 2, 7])),
        "branches": draw(st.sampled_from([1, 4, 9])),
        "spells": draw(st.booleans()),
        "mask_token": draw(st.sampled_from([None, None, 0, VOCAB - 6])),
    }


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_rounds_are_the_rules(case: dict[str, Any]) -> None:
    """Token for token and verdict for verdict; and every answer is of the form, or the beginning of one."""
    form = Automaton(case["rule"], forces=case["forces"], branches=case["branches"], spells=case["spells"])
    target, request = {"rule": case["rule"]}, case["request"]
    draft = {"rule": case["rule"], "divergence": case["divergence"], "vocab_size": case["draft_vocab"]}
    mask, longest = case["mask_token"], request["gamma"] + case["more"]  # windows with tokens that are forced
    bench = Bench.build(case["placement"], target=target, draft=draft, gamma_max=longest, mask_token=mask)
    results = bench.run(case["strategy"], _C.Request(**request, grammar=form), judge=case["judge"])
    rules = logits_after(**target), logits_after(**draft)
    wanted = expected(form, case["strategy"], *rules, request, case["judge"], longest, mask)
    assert rounds_of(results) == wanted
    tokens = tokens_of(results)
    is_over = results[-1].finish_reason == "stop"
    allowed = form.allowed(tokens[:-1] if is_over else tokens)
    assert allowed is not None and (not is_over or EOS in allowed)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("form_seed", range(6))
def test_all_drafters_give_the_same_bits(placement: str, temperature: float, form_seed: int) -> None:
    """Greedy and coupled: lookups, models, both, and no draft; with tokens that are forced and without."""
    answers = set()
    for strategy, lookup, forces, cost in [
        ("ar", None, False, None),
        ("sd", None, False, None),
        ("sd", None, True, None),
        ("pearl", None, False, None),
        ("pearl", None, True, None),
        ("sd", 0, False, None),
        ("sd", 64, True, None),
        ("sd", 0, True, 0.3),
        ("pearl", 64, True, 0.3),
        ("sd", 0, False, 0.0),
    ]:
        bench = Bench.build(
            placement,
            target={"rule": 3},
            draft={"rule": 3, "divergence": 0.3},
            lookup_pool=lookup,
            chain_cost=cost,
        )
        form = Automaton(form_seed, forces=forces, branches=2, spells=True)
        request = _C.Request(
            [1, 2, 3, 1, 2],
            gamma=5,
            max_tokens=40,
            eos_ids=[EOS],
            temperature=temperature,
            seed=7,
            grammar=form,
        )
        answers.add(tuple(tokens_of(bench.run(strategy, request))))
    assert len(answers) == 1


class Everything(Automaton):
    """Every text without the end of text, by a matcher that is kept."""

    def __init__(self) -> None:
        super().__init__(0, forces=False)
        self.next = [dict.fromkeys(range(1, VOCAB), 0)]
        self.ends = set()
        self.made = Matcher(self)

    def matcher(self) -> Matcher:
        return self.made


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("temperature", "judge"), [(0.0, "rejection"), (0.9, "coupled"), (0.9, "rejection")])
def test_the_matcher_is_asked_once_for_a_token(strategy: str, temperature: float, judge: str) -> None:
    """By what drafts it, with all that both lanes need behind it; and of greedy rows no mask is made."""
    scripts: dict[str, Any] = {"target": {"rule": 5}, "draft": {"rule": 5}}
    asked: dict[str, Any] = {"gamma": 3, "max_tokens": 40, "temperature": temperature, "seed": 3}
    form = Everything()
    bench = Bench.build(**scripts)
    results = bench.run(strategy, _C.Request([1], **asked, grammar=form), judge=judge)
    tokens = tokens_of(results)
    assert len(tokens) == 40
    drafted = sum(result.num_judged - result.accept_len for result in results)  # for nothing
    windows = 2 * len(results)  # a window that was begun and fell, and the token in its place
    assert form.made.steps <= len(tokens) + drafted + windows
    ends = sum(logits_after(rule=5)([1, *tokens[:i]]).argmax() == EOS for i in range(40))
    assert form.made.masks <= (2 + 6 * ends if temperature == 0 else form.made.steps + 2)
    masked = bench.run(strategy, _C.Request([1], **asked, grammar=form, logit_bias=[(3, 0.0)]), judge=judge)
    assert tokens_of(masked) == tokens and form.made.masks >= 40  # a bias needs all masks


def test_batches_beside_free_text() -> None:
    """Each sequence has the tokens that it has alone; those without a form are not touched."""
    forms = [Automaton(seed, forces=True) if seed % 3 else None for seed in range(6)]
    requests = [
        _C.Request([1 + i], gamma=3, max_tokens=20, eos_ids=[EOS], temperature=0.8, seed=i, grammar=form)
        for i, form in enumerate(forms)
    ]
    scripts: dict[str, Any] = {"target": {"rule": 5}, "draft": {"rule": 5, "divergence": 0.3}}
    alone = [tokens_of(Bench.build(**scripts).run("pearl", request)) for request in requests]
    results = Bench.build(num_slots=6, **scripts).run("pearl", *requests)
    assert [tokens_of(results, slot) for slot in range(6)] == alone


class Broken(Matcher):
    """Fails at its third step."""

    def step(
        self, num_back: int, tokens: Sequence[int], skip: int, wanted: int, masks: memoryview
    ) -> tuple[int, list[int], bool, list[int]]:
        if self.steps == 2:
            raise ValueError("too complex\nand its state")
        return super().step(num_back, tokens, skip, wanted, masks)


class BrokenForm(Automaton):
    def matcher(self) -> Matcher:
        return Broken(self)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_form_that_fails_ends_its_request_alone(strategy: str) -> None:
    bench = Bench.build(num_slots=2, target={"rule": 5}, draft={"rule": 5})
    good = _C.Request([1], gamma=3, max_tokens=20)
    bad = _C.Request([1], gamma=3, max_tokens=20, eos_ids=[EOS], grammar=BrokenForm(1, forces=True))
    results = bench.run(strategy, bad, good)
    [error] = [result.error for result in results if result.error]
    assert error.startswith("structured_outputs leaves no token at position") and "too complex" in error
    alone = Bench.build(target={"rule": 5}, draft={"rule": 5}).run(strategy, good)
    assert tokens_of(results, 1) == tokens_of(alone)


class DeadEnd(Automaton):
    def allowed(self, tokens: Sequence[int]) -> list[int] | None:
        return [] if len(tokens) == 3 else super().allowed(tokens)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_form_without_a_next_token_is_an_error(strategy: str) -> None:
    bench = Bench.build(target={"rule": 5}, draft={"rule": 5})
    form = DeadEnd(3, forces=False)
    form.ends = set()
    results = bench.run(strategy, _C.Request([1], gamma=4, max_tokens=20, eos_ids=[EOS], grammar=form))
    assert results[-1].error == "structured_outputs leaves no token at position 4"
    assert len(tokens_of(results)) <= 3  # those before it in its round are lost


@pytest.mark.parametrize(
    ("form", "named"),
    [(3, "grammar is a int; it must have matcher"), (object(), "grammar is a object")],
)
def test_what_is_no_form_is_named(form: object, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        _C.Request([1], grammar=form)


@pytest.mark.parametrize("size", [0, -1, 2**40, "x"])
def test_a_vocabulary_that_cannot_be_is_named(size: object) -> None:
    form = Automaton(1, forces=False)
    form.vocab_size = size  # type: ignore[assignment]
    with pytest.raises(RequestError, match="vocab_size of the grammar"):
        _C.Request([1], grammar=form)
