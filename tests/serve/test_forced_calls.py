"""Calls that must be: over a trained pair their arguments are valid; reasoning may come before them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from chains import NAMED as SPECIAL
from chains import save_chain
from serving import Served, serving

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings
from pearl_rt.serve.parsing.forms import Forms

MODELS = Path(__file__).resolve().parents[2] / "models"
TEMPLATE = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}# assistant: "
PARAMETERS = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "maxLength": 12},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "mode": {"$ref": "#/$defs/mode"},
    },
    "required": ["path", "mode"],
    "additionalProperties": False,
    "$defs": {"mode": {"enum": ["r", "w"]}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "open_file", "description": "é", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "list_files"}},
]
NAMED: Any = {"type": "function", "function": {"name": "open_file"}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with (
        Engine.from_pretrained(MODELS / "target", MODELS / "draft", judge="coupled") as engine,
        serving(engine, Settings("m", ChatTemplate(TEMPLATE))) as running,
    ):
        yield running


def check(name: str, arguments: str) -> None:
    read = json.loads(arguments)
    if name == "list_files":
        assert read == {}
        return
    assert name == "open_file" and read.keys() <= {"path", "lines", "mode"}
    assert isinstance(read["path"], str) and len(read["path"]) <= 12 and read["mode"] in ("r", "w")
    assert all(0 <= line <= 99 for line in read.get("lines", [])) and len(read.get("lines", [])) <= 3


@pytest.mark.parametrize("choice", ["required", NAMED], ids=("required", "named"))
def test_arguments_are_valid(client: openai.OpenAI, choice: Any) -> None:
    for seed in range(3):
        fields: Any = {
            "model": "m",
            "messages": [{"role": "user", "content": "Open the file."}],
            "tools": TOOLS,
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "temperature": 0.9,
            "seed": seed,
            "max_tokens": 200,
        }
        told = client.chat.completions.create(**fields).choices[0]
        assert told.finish_reason == "tool_calls" and told.message.content is None
        [call] = told.message.tool_calls
        check(call.function.name, call.function.arguments)
        deltas = [event.choices[0].delta for event in client.chat.completions.create(stream=True, **fields)]
        pieces = [piece.function for delta in deltas for piece in delta.tool_calls or ()]
        assert pieces[0].name == call.function.name and len(pieces) >= 2
        assert "".join(piece.arguments for piece in pieces) == call.function.arguments


def test_answers_that_are_free_agree(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        fields: Any = {"model": "m", "messages": [{"role": "user", "content": "def f"}], "tools": TOOLS}
        fields |= {"tool_choice": choice, "temperature": 0, "max_tokens": 40}
        whole = client.chat.completions.create(**fields).choices[0].message.content
        streamed = client.chat.completions.create(stream=True, **fields)
        assert "".join(event.choices[0].delta.content or "" for event in streamed) == whole


WAIT: Any = {"type": "function", "function": {"name": "wait"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [["yes"]]}}}
THINKS = {
    # what ends the prompt, marks, and the tokens of a block as the model writes it behind "a"
    "marks that are text": ("{{ messages[-1].content }}", ("(", ")"), "a(hm)["),
    "a block that the prompt has begun": ("{{ messages[-1].content }}(", ("(", ")"), "(hm)["),
    "a block that the prompt has ended": ("{{ messages[-1].content }}()", ("(", ")"), ")["),
    "marks that are special tokens": ("{{ messages[-1].content }}", ("<think>", "</think>"), "a<hm>["),
    "no block": ("{{ messages[-1].content }}", ("(", ")"), "a["),
}


@pytest.mark.parametrize("name", THINKS)
def test_reasoning_before_what_must_be(tmp_path: Path, name: str) -> None:
    """Whole and streamed; before calls, and before an answer with a schema."""
    template, marks, text = THINKS[name]
    tokens = [{"<": 259, ">": 260}.get(letter, ord(letter)) for letter in text]
    special = (*SPECIAL, "<think>", "</think>")
    follows: dict[int, Any] = dict(pairwise(tokens))
    if text == "a[":
        follows[ord("a")] = {ord("["): 30.0, ord("{"): 29.0}
    path = save_chain(tmp_path / "m", follows, special=special)
    settings = Settings("m", ChatTemplate(template), Forms(reasoning=marks))
    reasoning = "hm" if "hm" in text else None
    asked: Any = {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0,
        "max_tokens": 90,
    }
    required = {"tools": [WAIT], "tool_choice": "required", "parallel_tool_calls": False}
    with (
        Engine.from_pretrained(path, num_threads=1) as engine,
        serving(engine, settings) as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120) as client,
    ):
        for fields in (required, {**required, "tool_choice": {**WAIT}}, {"response_format": FORMAT}):
            [choice] = client.chat.completions.create(**asked, **fields).choices
            message = choice.message
            assert getattr(message, "reasoning_content", None) == reasoning, fields
            streamed = list(client.chat.completions.create(**asked, **fields, stream=True))
            deltas = [event.choices[0].delta for event in streamed]
            assert ("".join(getattr(d, "reasoning_content", "") for d in deltas) or None) == reasoning
            if "tools" in fields:
                assert [(c.function.name, c.function.arguments) for c in message.tool_calls or ()] == [
                    ("wait", "{}")
                ]
                pieces = [piece.function for delta in deltas for piece in delta.tool_calls or ()]
                assert (pieces[0].name, "".join(piece.arguments for piece in pieces)) == ("wait", "{}")
                assert choice.finish_reason == streamed[-1].choices[0].finish_reason == "tool_calls"
            else:
                assert message.content == "".join(d.content or "" for d in deltas) == '["yes"]'
        hidden = client.chat.completions.create(**asked, **required, extra_body={"include_reasoning": False})
        assert (
            not hasattr(hidden.choices[0].message, "reasoning_content")
            and hidden.choices[0].message.tool_calls
        )
