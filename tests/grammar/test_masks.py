"""Where a mask is needed: what the matcher takes in and what may stand, for each token of a vocabulary."""

from __future__ import annotations

import random
from typing import Any

import pytest
from asked_matcher import PERSON, forms_of, step, taken
from random_schemas import schema

from pearl_rt import StructuredOutputsParams


def test_a_mask_allows_less_than_is_taken_in() -> None:
    """Where text is certain: the tokenizer's own token alone, though others spell the text too."""
    forms, tokenizer, _ = forms_of("shipped")
    matcher = forms.form(StructuredOutputsParams(json=PERSON)).matcher()
    whole = tokenizer.encode('{"name":', add_special_tokens=False)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in '{"name":']
    assert len(whole) < len(letters)
    assert taken(matcher, letters) == len(letters)
    count, fixed, masks, _ = step(matcher, whole, num_back=len(letters))
    assert count == len(whole) and fixed[: len(whole)] == [*range(len(whole))]
    assert masks[0] == whole[:1]
    for token, mask in zip(whole[:-1], masks, strict=False):
        assert mask == [token]


MANY: list[dict[str, Any]] = [
    *({"json": schema(number)} for number in range(40)),
    {"json": {}},
    {"json": {"type": "array", "items": {"type": "number"}, "x-guidance": {"whitespace_flexible": True}}},
    {"json": PERSON, "reasoning": ["<think>", "</think>"]},
    {"json": PERSON, "reasoning": ["</think>"]},
    {"json_object": True},
    {"regex": "(ab|ba)+[0-9]{2,4}(x|xyz)?"},
    {"regex": ".{0,30}"},
    {"choice": ["yes", "yesterday", "no", "not at all", "y"]},
    {"grammar": 'start: greeting " " NAME\ngreeting: "hi" | "bye"\nNAME: /[a-z]{2,9}/'},
    {"grammar": 'root ::= item ("," item)*\nitem ::= [a-z]+ | "\\"" [^"]* "\\""'},
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shipped", "sentencepiece", "bytes"])
def test_what_is_taken_in_may_stand(name: str) -> None:
    """Where no text is certain: each token of the vocabulary, beside its mask, along random texts of the form
    and along texts of the tokenizer.
    """
    forms, tokenizer, end = forms_of(name)
    rng = random.Random(name)
    for form in MANY:
        compiled = forms.form(StructuredOutputsParams(**form))
        num_free = 0
        for _ in range(3):
            matcher = compiled.matcher()
            for _ in range(25):
                _, fixed, [mask], forced = step(matcher, wanted=0)
                plain = [token for token in mask if token != end]
                if not fixed:
                    num_free += 1
                    judge = matcher._matcher
                    found = [i for i in range(matcher.vocab_size) if i != end and judge.validate_tokens([i])]
                    assert found == plain, form
                    some = [
                        *rng.sample(plain, min(len(plain), 20)),
                        *rng.sample(range(matcher.vocab_size), 60),
                    ]
                    for token in some:
                        takes = taken(matcher, [token])
                        assert takes == (token in plain), form
                        step(matcher, num_back=takes, skip=1)
                if not plain:
                    break
                after = forced if forced and rng.random() < 0.5 else [rng.choice(plain)]
                if rng.random() < 0.3 and not fixed:  # short tokens, which texts of a model seldom have
                    after = [min(plain, key=lambda token: len(tokenizer.token_bytes(token)))]
                assert taken(matcher, after) == len(after), form
        assert num_free > 0 or "choice" in form, form
