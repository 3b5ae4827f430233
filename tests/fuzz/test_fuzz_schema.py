"""Forms of answers, mutated: schemas, expressions and grammars. What compiles can be followed to its end."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzzing import Fuzzer
from mutations import json_text, mutated, mutated_text
from tiny_pairs import byte_tokenizer

from pearl_rt import StructuredOutputsParams
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import RequestError
from pearl_rt.grammar.forms import Forms

SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 5},
            "age": {"type": "integer", "minimum": -5, "maximum": 99, "multipleOf": 2},
            "kind": {"enum": ["a", "é", 1, None, {"x": [1]}]},
            "when": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[a-c]{2,4}(x|y)$"},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["name", "kind"],
        "additionalProperties": False,
    },
    {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 3},
            "item": {"oneOf": [{"type": "boolean"}, {"const": "x"}], "description": "d", "default": None},
        },
    },
    {"type": ["object", "array"], "patternProperties": {"^x": {"type": "number", "exclusiveMinimum": 0.5}}},
    {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": True, "b": False}}], "title": "t"},
    {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "null"}],
        "items": False,
        "x-guidance": {},
    },
)
EXPRESSIONS = ("[ab]{3,5}-[0-9]{2}", r"(yes|no|\d+)\.?", r"(?i:abc)[^x]*\w{1,3}", "a|b|")
GRAMMARS = (
    'start: greeting " " NAME\ngreeting: "hi" | "bye"\nNAME: /[a-z]{2,3}/',
    'root ::= greeting " " name\ngreeting ::= "hi" | "bye"\nname ::= [a-z] [a-z] [a-z]?',
    'start: "(" (start | WORD)? ")"\nWORD: /[xyz]{1,2}/\n%ignore / /',
)
PIECES = (
    "{1000}",
    "{2,",
    "*",
    "+",
    "?",
    "(",
    ")",
    "[^",
    "\\p{L}",
    "(?=",
    "|",
    ".",
    "$",
    ":",
    "%json {}",
    "start",
    "\n",
    '"',
)


def draw(rng: Random) -> tuple[str, str]:
    """Which form, and its text."""
    kind = rng.choice(("json", "json", "json", "regex", "grammar", "choice"))
    if kind == "json":
        return kind, json_text(mutated(rng.choice(SCHEMAS), rng))
    if kind == "choice":
        return kind, json_text(mutated(["yes", "no", "a.b", "é" * 30], rng))
    return kind, mutated_text(rng.choice(EXPRESSIONS if kind == "regex" else GRAMMARS), rng, PIECES)


@pytest.fixture(scope="module")
def forms() -> Forms:
    made = Forms(Tokenizer(byte_tokenizer(), vocab_size=300), 300, [256])
    made.form(StructuredOutputsParams(regex="a"))  # llguidance reads the vocabulary once
    return made


def test_schema(fuzzer: Fuzzer, forms: Forms) -> None:
    def follow(case: tuple[str, str]) -> str:
        kind, text = case
        try:
            value: Any = json.loads(text) if kind == "choice" else text
        except (ValueError, RecursionError):
            return "no JSON"
        matcher = forms.form(StructuredOutputsParams(**{kind: value})).matcher()
        rng, words = Random(text), np.zeros((3, -(-matcher.vocab_size // 32)), np.uint32)
        token: list[int] = []
        for _ in range(40):
            try:
                found = matcher.step(0, token, 0, len(token), memoryview(words).cast("B"))
            except ValueError as error:  # it became too complex: the request ends
                raise RequestError(str(error)) from None
            taken, fixed, has_wanted, forced = found
            assert taken == len(token) and len(forced) <= 128
            mask = words[len(fixed) + has_wanted - 1]
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if len(allowed) == 0:
                return "no token"  # the request ends with an error that says so
            if 256 in allowed and rng.random() < 0.5:
                break
            plain = allowed[allowed != 256]
            if len(plain) == 0:
                break
            token = [int(rng.choice(plain.tolist()))]
        return "followed"

    outcomes = fuzzer.run(200, draw, follow)
    assert fuzzer.is_alone or {"followed", "RequestError"} <= outcomes.keys()
