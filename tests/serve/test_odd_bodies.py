"""Bodies with odd values in any place: they are read, or refused as the client's fault."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from pearl_rt.errors import RequestError
from pearl_rt.serve.completion_request import read_chat, read_completion
from pearl_rt.serve.responses.request import read_responses
from pearl_rt.serve.tokens.request import TokenizeRequest, read_tokens

FUNCTION = {
    "name": "f",
    "description": "d",
    "strict": True,
    "parameters": {"type": "object", "$defs": {"a": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "include_reasoning": True,
    "chat_template_kwargs": {"a": 1},
    "speculative": {"strategy": "ar", "gamma": 1, "judge": "coupled"},
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "logprobs": True,
    "top_logprobs": 1,
}
ALLOWED = {"mode": "required", "tools": [{"type": "function", "name": "f"}]}
RESPONSES = {
    "model": "m",
    "instructions": "a",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
    ],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "allowed_tools", **ALLOWED},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "max_output_tokens": 5,
    "temperature": 1,
}
ODD = (
    None,
    True,
    0,
    -1,
    10**400,
    1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    "none",
    [],
    [None],
    [[]],
    {},
    {"": {}},
    {"type": 5},
)
READERS: dict[str, tuple[Callable[[object], object], Any]] = {
    "chat": (read_chat, CHAT),
    "allowed": (read_chat, {**CHAT, "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}}),
    "completion": (read_completion, {"prompt": ["a", [1]], "logit_bias": {"1": 1}, "stop": ["a"]}),
    "responses": (read_responses, RESPONSES),
    "tokenize": (TokenizeRequest.read, {"messages": CHAT["messages"], "tools": CHAT["tools"]}),
    "detokenize": (read_tokens, {"tokens": [1, 2]}),
}  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that is inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((value, key), *places(inner))]


@pytest.mark.parametrize("name", READERS)
def test_odd_values_are_the_clients_fault(name: str) -> None:
    read, body = READERS[name]
    read(copy.deepcopy(body))
    draw, refused = random.Random(name), 0
    cases = [(number, odd) for number in range(len(places(body))) for odd in (*ODD, "gone")]
    cases += [(draw.randrange(len(places(body))), draw.choice(ODD)) for _ in range(200)]
    for number, odd in cases:
        changed = copy.deepcopy(body)
        container, key = places(changed)[number]
        if odd == "gone":
            del container[key]
        else:
            container[key] = copy.deepcopy(odd)
        if draw.random() < 0.2:  # and a second one
            container, key = draw.choice(places(changed) or [({}, "")])
            container[key] = draw.choice(ODD)
        try:
            read(changed)
        except RequestError as error:
            refused += 1
            assert str(error), changed
            json.dumps(str(error))
    assert refused > len(cases) // 10


@pytest.mark.parametrize("body", [None, [], "x", 5, [CHAT]], ids=str)
def test_what_is_no_object(body: Any) -> None:
    for read, _ in READERS.values():
        with pytest.raises(RequestError, match="must be a JSON object"):
            read(body)
