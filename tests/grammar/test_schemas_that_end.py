"""Whether a schema has an answer that ends: references that need themselves are found, others are let be."""

from __future__ import annotations

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


def test_a_long_chain_of_references_is_followed() -> None:
    """In bounded time: each round ends one of them."""
    chain: dict[str, Any] = {f"s{i}": {"$ref": f"#/$defs/s{i + 1}"} for i in range(150)}
    chain["s150"] = {"type": "null"}
    assert endless_reference({"$ref": "#/$defs/s0", "$defs": chain}) is None
    chain["s150"] = {"$ref": "#/$defs/s0"}
    assert endless_reference({"$ref": "#/$defs/s0", "$defs": chain}) is not None
