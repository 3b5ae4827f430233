"""Mutations of values of JSON, of text and of bytes, drawn by a seeded generator: one form for all fuzzers.

A change is one that a careless or a hostile writer makes: a value of another type or size, a name that is
gone or stands twice, members in another order, text that is cut or repeated, bytes that are flipped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Text that stands in a file as it is: numbers that no double holds, values of any depth."""

    text: str


@dataclass(frozen=True)
class Pairs:
    """An object whose names may stand twice."""

    pairs: tuple[tuple[str, object], ...]


DEPTHS = (64, 65, 150, 300, 600, 900, 1000, 100_000)
ODD: tuple[object, ...] = (
    *(None, True, False),
    *(0, 1, -1, 2, 3, 7, 16, 127, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(10**19, -(10**19), Raw("1" + "0" * 400), Raw("1" * 5000), Raw("1e999"), Raw("-0")),
    *(0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "none", "auto", "0", "-1", "true", "\x00", "\n", "\ud800", "é\U0001f600", "\u2028"),
    *("../x", "/", "a" * 300, "{{ x }}", "%s", "\\", '"', "<think>", "<tool_call>", "(a", "[0-9]{1000}"),
    *([], [None], [[]], [0], [1, 2], ["a"], {}, {"": {}}, {"type": 5}, {"a": {"b": []}}),
    *(Raw("[" * depth + "]" * depth) for depth in DEPTHS),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in DEPTHS),
)
HEAVY = (
    Raw('"' + "a" * 2**20 + '"'),
    Raw('"' + "é b" * 2**18 + '"'),
    Raw('"' + "\\u0000" * 2**17 + '"'),
    Raw("[" + "0," * 2**16 + "0]"),
    Raw("[" + '"a",' * 2**15 + '"a"]'),
    Raw("{" + ",".join(f'"k{i}":{i}' for i in range(2**14)) + "}"),
)
INTEGERS = (0, 1, 2, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def odd_value(rng: Random) -> Any:
    """Any value, of any type; one of fifty is large."""
    return copy.deepcopy(rng.choice(HEAVY if rng.random() < 0.02 else ODD))


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that is inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((value, key), *places(inner))]


def mutated(value: object, rng: Random) -> Any:
    """A copy with one change, or up to eight."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        container, key = _place(root, rng)
        rng.choice(CHANGES)(root, container, key, rng)
    return root[0]


def mutated_text(text: str, rng: Random, words: Sequence[str] = ()) -> str:
    """A text with one change, or up to four. words: pieces that mean something in it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        begin, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        end = min(end, begin + rng.choice((1, 4, 20, len(text))))
        piece = text[begin:end]
        odd = rng.choice(
            [*words, "", " ", "\x00", "\n", "é", "\U0001f600", "(" * 300, "9" * 20, "-1", "{", "%}"]
        )
        repeats = rng.choice((2, 2, 3, 1000)) if len(piece) < 100 else 2
        new = rng.choice(("", piece * repeats, odd, odd + piece, piece[::-1], piece.swapcase()))
        text = text[:begin] + new + text[end:]
    return text


def mutated_bytes(data: bytes, rng: Random, marks: Sequence[int] = (), end: int | None = None) -> bytes:
    """Bytes of which some before `end` are others, and which may be cut. marks: places to be chosen often."""
    raw, end = bytearray(data), min(len(data), len(data) if end is None else end)
    for _ in range(rng.choice((1, 1, 2, 8)) if end else 0):
        at = rng.choice(marks) if marks and rng.random() < 0.5 else rng.randrange(end)
        width = rng.choice((1, 1, 4, 8))
        value = rng.choice((*INTEGERS, rng.randrange(256)))
        raw[at : at + width] = (value % 256**width).to_bytes(width, "little")
    if rng.random() < 0.05:
        at = rng.randrange(len(raw) + 1)
        raw[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))
    return bytes(raw[: rng.choice((len(raw), len(raw), len(raw), rng.randrange(len(raw) + 1)))])


def json_bytes(value: object, rng: Random) -> bytes:
    """A value as a file of JSON; now and then it is none any more."""
    data = json_text(value).encode()
    if rng.random() < 0.1:
        data = mutated_bytes(data, rng)
    if rng.random() < 0.03:
        data = rng.choice(
            (b"\xef\xbb\xbf" + data, data.decode(errors="replace").encode("utf-16"), b"", b"\xff" + data)
        )
    return data


def json_text(value: object) -> str:
    """As json.dumps, with Raw and Pairs in it."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        value = Pairs(tuple(value.items()))
    if isinstance(value, Pairs):
        return (
            "{" + ",".join(f"{json.dumps(str(name))}:{json_text(each)}" for name, each in value.pairs) + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    return json.dumps(value)


def _place(root: list[Any], rng: Random) -> tuple[Any, Any]:
    """(container, key) at the end of a walk from the root: what lies deep is not chosen more often."""
    container, key = root, 0
    while isinstance(inside := container[key], (dict, list)) and inside and rng.random() < 0.85:
        container = inside
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
    return container, key


Change = Callable[[list[Any], Any, Any, Random], None]


def _odd(_: list[Any], container: Any, key: Any, rng: Random) -> None:
    container[key] = odd_value(rng)


def _near(root: list[Any], container: Any, key: Any, rng: Random) -> None:
    """Another value of the same kind, or the same value as another kind."""
    value = container[key]
    if isinstance(value, str):
        container[key] = mutated_text(value, rng)
    elif isinstance(value, (int, float)):
        container[key] = rng.choice(
            (value + 1, value - 1, -value, value * 2, value / 2, str(value), value != 0)
        )
    else:
        _odd(root, container, key, rng)


def _moved(root: list[Any], container: Any, key: Any, rng: Random) -> None:
    other, place = _place(root, rng)
    container[key] = copy.deepcopy(other[place])


def _gone(root: list[Any], container: Any, key: Any, rng: Random) -> None:
    if container is root:
        _odd(root, container, key, rng)
    else:
        del container[key]


def _twice(_: list[Any], container: Any, key: Any, rng: Random) -> None:
    """A member twice; of an object under one name, with two values."""
    value = container[key]
    if isinstance(value, dict) and value:
        container[key] = Pairs((*value.items(), (rng.choice(list(value)), odd_value(rng))))
    elif isinstance(value, list) and value:
        value.insert(rng.randrange(len(value) + 1), copy.deepcopy(rng.choice(value)))
    else:
        container[key] = [value, copy.deepcopy(value)]


def _shuffled(_: list[Any], container: Any, key: Any, rng: Random) -> None:
    value = container[key]
    if isinstance(value, list):
        rng.shuffle(value)
    elif isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        container[key] = dict(items)


def _added(_: list[Any], container: Any, key: Any, rng: Random) -> None:
    value = container[key]
    if isinstance(value, dict):
        value[rng.choice(("x", "", "type", "name", "self", "\ud800", "$ref", "default", "a" * 300))] = (
            odd_value(rng)
        )
    elif isinstance(value, list):
        value.insert(rng.randrange(len(value) + 1), odd_value(rng))
    else:
        container[key] = rng.choice(([value], {"a": value}, {"": value, "type": value}))


def _renamed(_: list[Any], container: Any, key: Any, rng: Random) -> None:
    if isinstance(container, dict):
        container[mutated_text(str(key), rng)] = container.pop(key)


CHANGES: tuple[Change, ...] = (
    _odd,
    _odd,
    _odd,
    _near,
    _near,
    _moved,
    _gone,
    _twice,
    _shuffled,
    _added,
    _renamed,
)
