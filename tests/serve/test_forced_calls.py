"""Tools over a trained pair: whole and streamed answers agree, and forced calls have valid arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import serving

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings

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
def client() -> Iterator[openai.OpenAI]:
    with (
        Engine.from_pretrained(MODELS / "target", MODELS / "draft", judge="coupled") as engine,
        serving(engine, Settings("m", ChatTemplate(TEMPLATE))) as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120) as made,
    ):
        yield made


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
