"""JSON schemas at random whose answers are all short, so that each answer ends by itself."""

from __future__ import annotations

import random
from typing import Any

PATTERNS = ("^[a-c]{2,4}$", "^(north|south)$", "^[0-9]{3}-[0-9]{2}$")
WORDS = ("red", "green", "ä", 'quo"te', "back\\slash", "", "line\nend", "😀")


def schema(seed: int, depth: int = 3) -> dict[str, Any]:
    """One of an object, with up to `depth` levels below it."""
    return _object(random.Random(seed), depth)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["name", "age", "größe", "a b", "tags", 'q"', "inner"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "pattern", "enum", "integer", "number", "boolean", "null", "const"]
    kind = rng.choice(kinds + ["object", "array", "array", "anyOf"] * (depth > 0))
    low = rng.randint(-50, 50)
    made: dict[str, Any] = {
        "string": {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)},
        "pattern": {"type": "string", "pattern": rng.choice(PATTERNS)},
        "enum": {"enum": rng.sample([*WORDS, 1, -2.5, None, True], 3)},
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)},
        "number": {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "const": {"const": rng.choice([*WORDS, 12, {"a": [1, None]}])},
    }
    if kind == "object":
        return _object(rng, depth)
    if kind == "array":
        least = rng.randint(0, 2)
        items = _any(rng, depth - 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randint(0, 2)}
    if kind == "anyOf":
        return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
    found: dict[str, Any] = made[kind]
    return found
