"""Parsers of calls and reasoning: what they find, in whatever pieces the text comes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from functools import partial

import pytest

from pearl_rt.serve.chat.reading import GrowingAnswer, Reading, WholeAnswer
from pearl_rt.serve.parsing.hermes import HermesCalls
from pearl_rt.serve.parsing.json_value import MAX_DEPTH, JsonValue
from pearl_rt.serve.parsing.llama_json import LlamaCalls
from pearl_rt.serve.parsing.mistral import ForcedCall, ForcedCalls, MistralCalls
from pearl_rt.serve.parsing.parts import (
    CallArguments,
    CallEnd,
    CallStart,
    Parser,
    Part,
    Reasoning,
    Text,
    joined,
)
from pearl_rt.serve.parsing.think_block import PlainText, ThinkBlock
from pearl_rt.types.outputs import StreamChunk

THINK = ("<think>", "</think>")
HERMES, MISTRAL = HermesCalls, MistralCalls
LLAMA = partial(LlamaCalls, ("f", "g"))


def call(name: str, arguments: str = "{}") -> list[Part]:
    return [CallStart(name), CallArguments(arguments), CallEnd()]


def read(make: Callable[[], Parser], pieces: Iterable[str]) -> list[Part]:
    parser, parts = make(), []
    for piece in pieces:
        parts += parser.push(piece)
    return joined([*parts, *parser.finish()])


A = '{"a": [1, -2.5e3, "x\\"}", {"é": null}]}'
Q = '"{\\"a\\": 1}"'
# (parser, text, what it is made of)
FOUND = [
    (
        HERMES,
        f'hi\n<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>',
        [Text("hi"), *call("f", A)],
    ),
    (HERMES, '<tool_call>{"arguments": {"b":1}, "name":"g"}</tool_call>\n', call("g", '{"b":1}')),
    (
        HERMES,
        '<tool_call>{"name":"f"}</tool_call>\n<tool_call>{"name":"g"}</tool_call>',
        call("f") + call("g"),
    ),
    (HERMES, '<tool_call>{"name":"f","arguments":null}</tool_call> and', [*call("f"), Text(" and")]),
    (HERMES, f'<tool_call>{{"name":"f","arguments":{Q}}}</tool_call>', call("f", '{"a": 1}')),
    (HERMES, '<tool_call>{"name":"f","id":7}\n', call("f")),
    (HERMES, '<tool_call>{"name":"f"}</tool', [*call("f"), Text("</tool")]),
    (HERMES, '<tool_call>{"name":"f"} </tool_cal> x', [*call("f"), Text(" </tool_cal> x")]),
    (HERMES, '<tool_call>{"name":"f"}<tool_call>{"name":"g"}', call("f") + call("g")),
    (HERMES, '<tool_call><tool_call>{"name":"f"}', [Text("<tool_call>"), *call("f")]),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', call("f", '{"a": 1}')),
    (LLAMA, '\n{"type": "function", "name": "f", "parameters": {}}; {"name":"g"}', call("f") + call("g")),
    (LLAMA, '<|python_tag|>{"name": "zz", "parameters": {"a": 1}}', call("zz", '{"a": 1}')),
    (LLAMA, 'ok <|python_tag|>{"name": "f"}', [Text("ok"), *call("f")]),
    (LLAMA, '{"name": "f"} text', [*call("f"), Text(" text")]),
    (
        MISTRAL,
        f'ok [TOOL_CALLS] [{{"name": "f", "arguments": {A}}}, {{"name":"g"}}]',
        [Text("ok"), *call("f", A), *call("g")],
    ),
    (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a":1}[TOOL_CALLS]g{"b":2}', call("f", '{"a":1}') + call("g", '{"b":2}')),
    (MISTRAL, '[TOOL_CALLS][{"name":"f"}] tail', [*call("f"), Text(" tail")]),
    (
        ForcedCalls,
        ' [{"name":"f","parameters":{"a":1}},{"name":"g","parameters":{}}]',
        call("f", '{"a":1}') + call("g"),
    ),
    (partial(ForcedCall, "f"), '{"a": {"b": 1}}', call("f", '{"a": {"b": 1}}')),
    (
        partial(ThinkBlock, THINK, PlainText()),
        "<think>\nhm </x>\n</think>\n\nso",
        [Reasoning("hm </x>"), Text("so")],
    ),
    (
        partial(ThinkBlock, THINK, PlainText(), is_open=True),
        "\nhm\n</think>so",
        [Reasoning("hm"), Text("so")],
    ),
    (
        partial(ThinkBlock, THINK, PlainText(), is_open=True),
        "hm <</think> so",
        [Reasoning("hm <"), Text("so")],
    ),
    (partial(ThinkBlock, THINK, PlainText(), is_open=True), "hm </thin", [Reasoning("hm </thin")]),
    (partial(ThinkBlock, THINK, PlainText()), "so <think>hm</think>", [Text("so <think>hm</think>")]),
    (partial(ThinkBlock, THINK, PlainText()), " <thi", [Text(" <thi")]),
]
# (parser, text): nothing is a call in them.
PLAIN = [
    *[
        (HERMES, text)
        for text in (
            "",
            "  ",
            "x  ",
            "<tool",
            " <<tool_call>nope</tool_call>",
            "<tool_call>",
            "<tool_call> {",
            '<tool_call>{"arguments": {"a": 1}}</tool_call>',
            '<tool_call>{"name": "f" "arguments": {}}',
            '<tool_call>{"name": ""}</tool_call>',
            '<tool_call>{"name": 5}</tool_call>',
            "<tool_call>[]",
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "\\ud800"}</tool_call>',
            '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>',
            '<tool_call>{"name": "f",}',
            '<tool_call>{"name": "f", "arguments": "{\\"\\ud800\\": 1}"}',
            '<tool_call>{"arguments": {"a": 1}, "arguments": {}, "name": "f"}</tool_call>',
        )
    ],
    *[
        (LLAMA, text)
        for text in (
            '{"name": "zz", "parameters": {"a": 1}}',
            '{"x": 1}',
            'hi {"name": "f"}',
            '<|python_tag|>f.call(q="x")',
            '{"name": "f", "age": 5}',
            "{}",
            " {",
            '{"name": "f"',
        )
    ],
    *[
        (MISTRAL, t)
        for t in ("[TOOL_CALLS]", "[TOOL_CALLS] [", "[TOOL_CALLS]f[CALL", "[TOOL_CALLS]f", "[TOOL_C")
    ],
]
# (parser, text, what a stream has told before it knew): the whole text is text.
BROKEN = [
    (
        HERMES,
        'a <tool_call>{"name": "f", "arguments": {"a": 1,, }}</tool_call> z',
        ["a", '{"a": 1,', ", }}</tool_call> z"],
    ),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a":', ["", '{"a":', ""]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}, "b" }', ["", '{"a": 1}', ', "b" }']),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\n"}}', ["", '{"a": "', '\n"}}']),
    (MISTRAL, '[TOOL_CALLS]f{"a": 01}', ["", '{"a": 01', "}"]),
    (partial(ForcedCall, "f"), '{"a": {"b": 1', ["", '{"a": {"b": 1', ""]),
]


@pytest.mark.parametrize(("make", "text", "parts"), FOUND, ids=lambda value: str(value)[:40])
def test_what_is_found_at_every_division(make: Callable[[], Parser], text: str, parts: list[Part]) -> None:
    assert read(make, [text]) == parts
    assert read(make, text) == parts
    for place in range(len(text)):
        assert read(make, [text[:place], "", text[place:]]) == parts
    draw = random.Random(text)
    cuts = sorted(draw.sample(range(len(text)), 3))
    assert read(make, [text[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True)]) == parts
    for part in parts:
        if isinstance(part, CallArguments):
            assert isinstance(json.loads(part.text), dict)


@pytest.mark.parametrize(("make", "text"), PLAIN, ids=str)
def test_what_is_no_call_is_text(make: Callable[[], Parser], text: str) -> None:
    expected = [Text(text)] if text else []
    assert read(make, [text]) == read(make, text) == expected
    for place in range(len(text)):
        assert read(make, [text[:place], text[place:]]) == expected


@pytest.mark.parametrize(("make", "text", "told"), BROKEN, ids=str)
def test_what_turns_out_to_be_no_call_is_not_lost(
    make: Callable[[], Parser], text: str, told: list[str]
) -> None:
    reading = Reading(make)
    whole = WholeAnswer.read(text, reading)
    assert (whole.content, whole.calls) == (text, [])
    for place in range(len(text)):
        growing = GrowingAnswer(reading, make())
        deltas = growing.deltas(StreamChunk([1], text[:place]))
        deltas += growing.deltas(StreamChunk([1], text[place:], "stop"))
        calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
        before, arguments, rest = told
        assert "".join(delta.get("content", "") for delta in deltas) == before + rest
        assert "".join(call["arguments"] for call in calls) == arguments and calls[0]["name"] == "f"
        assert growing.reason("stop") == "stop"


def test_arguments_are_told_as_they_come() -> None:
    growing = GrowingAnswer(Reading(HermesCalls), HermesCalls())
    told = [
        growing.deltas(StreamChunk([1], piece))
        for piece in ('<tool_call>{"name": "f", "argum', 'ents": {"a"', ": 1}")
    ]
    assert [len(deltas) for deltas in told] == [0, 2, 1]
    first, second = told[1]
    assert first["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}
    assert second["tool_calls"][0] == {"index": 0, "function": {"arguments": '{"a"'}}
    assert told[2][0]["tool_calls"][0] == {"index": 0, "function": {"arguments": ": 1}"}}


def test_without_parallel_calls_the_first_is_told() -> None:
    text = '<tool_call>{"name":"f"}</tool_call> x <tool_call>{"name":"g"}</tool_call>'
    reading = Reading(HermesCalls, is_parallel=False)
    whole = WholeAnswer.read(text, reading)
    assert [c["function"]["name"] for c in whole.calls] == ["f"] and whole.content == " x"
    growing = GrowingAnswer(reading, HermesCalls())
    deltas = [delta for c in text for delta in growing.deltas(StreamChunk([1], c))]
    assert [c["function"].get("name") for d in deltas for c in d.get("tool_calls", ())] == ["f", None]


def test_ids_of_calls() -> None:
    assert len({HermesCalls.call_id() for _ in range(50)}) == 50
    assert all(len(i) == 9 and i.isalnum() for i in (MistralCalls.call_id() for _ in range(50)))


VALUES = [
    "null",
    "true",
    "-0",
    "0",
    "10.5",
    "1e9",
    "1E-2",
    '""',
    '"\\u00e9\\n"',
    "[]",
    "{}",
    '[1,{"a":[]}]',
    '{"a":1,"b":[ ]}',
]
NO_VALUES = [
    "nul,",
    "01",
    "1.",
    ".5",
    "+1",
    "1e",
    "-",
    "NaN",
    "'a'",
    '"\\x"',
    '"\\u12g4"',
    "[1,]",
    "{,}",
    '{"a"}',
    '{"a":1,}',
    "[1}",
    "{]",
    "]",
    "}",
    "[1,,2]",
    '{"a":}',
]
NO_VALUES.append('"\t"')


@pytest.mark.parametrize("text", VALUES)
def test_values_of_json(text: str) -> None:
    json.loads(text)
    for end in ("", " ", ",", "]"):
        value = JsonValue()
        took = [value.push(character) for character in text + end]
        value.finish()
        assert value.is_done and value.text == text and all(took[: len(text)]) and not any(took[len(text) :])


@pytest.mark.parametrize("text", NO_VALUES)
def test_what_is_no_json(text: str) -> None:
    value = JsonValue()
    for character in text:
        value.push(character)
    value.finish()
    assert value.is_broken


def test_values_as_json_loads_them() -> None:
    draw = random.Random(7)
    seen = set()
    for _ in range(4000):
        text = "".join(draw.choice('{}[]",:1-.e0tn\\ ') for _ in range(draw.randint(1, 8)))
        value = JsonValue()
        took = all(value.push(character) for character in text.strip(" "))
        value.finish()
        try:
            json.loads(text, strict=True)
            is_json = True
        except ValueError:
            is_json = False
        assert (took and value.is_done) == is_json, text
        seen.add(is_json)
    assert seen == {True, False}


def test_a_value_that_is_too_deep_is_none() -> None:
    for depth, is_fine in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        value = JsonValue()
        for character in "[" * depth + "]" * depth:
            value.push(character)
        assert (value.is_done, value.is_broken) == (is_fine, not is_fine)
