"""Whether a schema has an answer that ends: references that need themselves are found, others are let be."""

from __future__ import annotations

from itertools import pairwise
from time import process_time
from typing import Any

import pytest
from random_schemas import schema

from pearl_rt.grammar.schema import endless_reference

ITSELF = {"$ref": "#/$defs/a"}


def with_a(a: Any, **own: Any) -> dict[str, Any]:
    return {**(own or ITSELF), "$defs": {"a": a}}


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (with_a(ITSELF), "#/$defs/a"),
        (with_a({"type": "object", "properties": {"n": ITSELF}, "required": ["n"]}), "#/$defs/a"),
        (with_a({"type": "object", "properties": {"n": ITSELF}}), None),
        (with_a({"type": ["object", "null"], "properties": {"n": ITSELF}, "required": ["n"]}), None),
        (with_a({"anyOf": [ITSELF, {"type": "null"}]}), None),
        (with_a({"anyOf": [ITSELF, {"type": "array", "items": ITSELF, "minItems": 1}]}), "#/$defs/a"),
        (with_a({"oneOf": [{"allOf": [ITSELF]}]}), "#/$defs/a"),
        (with_a({"type": "array", "items": ITSELF}), None),
        (with_a({"type": "array", "prefixItems": [ITSELF], "minItems": 1}), "#/$defs/a"),
        (with_a({"type": "array", "prefixItems": [ITSELF], "minItems": 0}), None),
        (with_a({"type": "array", "items": ITSELF, "minItems": 2}), "#/$defs/a"),
        (with_a({"const": 1}), None),
        (with_a({"type": "string"}), None),
        (with_a(True), None),
        (with_a({"$ref": "#/$defs/a~1b"}), None),
        ({"$ref": "#"}, "#"),
        ({"$ref": "http://elsewhere/"}, None),
        ({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}, "#"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"type": "null"}},
            },
            None,
        ),
        ({"allOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": ITSELF}}, "#/$defs/a"),
    ],
)
def test_references(schema: dict[str, Any], found: str | None) -> None:
    assert endless_reference(schema) == found


def test_schemas_without_references_end() -> None:
    assert not any(endless_reference(schema(seed)) for seed in range(200))


@pytest.mark.parametrize("is_backwards", [False, True])
def test_a_long_chain_of_references_is_followed(is_backwards: bool) -> None:
    """In any order, and each twice at most."""
    names = [f"s{i:04}" for i in range(2000)]
    names = names[::-1] if is_backwards else names
    first = {"$ref": f"#/$defs/{names[0]}"}
    chain: dict[str, Any] = {a: {"$ref": f"#/$defs/{b}"} for a, b in pairwise(names)}
    chain[names[-1]] = {"type": "null"}
    began = process_time()
    assert endless_reference({**first, "$defs": chain}) is None
    chain[names[-1]] = first
    assert endless_reference({**first, "$defs": chain}) is not None
    assert process_time() - began < 2


@pytest.mark.parametrize(
    "schema",
    [
        {"type": []},
        {"type": [{}]},
        {"type": "object", "required": [[], {}, None, "a"]},
        {"$ref": "#/anyOf/²", "anyOf": [{}]},
        {"$ref": "#/anyOf/" + "9" * 5000, "anyOf": [{}]},
        {"anyOf": [], "allOf": [None]},
        {"type": "array", "minItems": 10**400},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_schemas_that_are_none_are_left_to_others(schema: Any) -> None:
    assert endless_reference(schema) is None
