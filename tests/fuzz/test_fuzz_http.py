"""Bodies of requests, mutated: each is answered, or refused as the client's fault in OpenAI's shape."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from random import Random
from typing import Any

import pytest
from fuzzing import Fuzzer
from mutations import ODD, Raw, json_bytes, mutated, places
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.errors import RequestError
from pearl_rt.serve.app import Settings
from pearl_rt.serve.completion_request import OPENAI_DEFAULTS, read_chat, read_completion
from pearl_rt.serve.responses.request import read_responses
from pearl_rt.serve.tokens.request import TokenizeRequest, read_tokens

TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t.function.name + t.function.description }}{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if thinks %}<think>{% endif %}{% endif %}{# </think> #}"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 3},
        "b": {"enum": [1, "x", None]},
        "c": {"$ref": "#/$defs/c"},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
    "$defs": {"c": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
}
FUNCTION = {"name": "f", "description": "d", "strict": True, "parameters": SCHEMA}
OTHER = {"name": "g", "parameters": {"type": "object", "$defs": {"a": {}}}}
TOOLS = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": OTHER}]
CALLS = [
    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    {"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"a": [1]}'}},
]
CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "2", "content": "x"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "y"}]},
        {"role": "user", "content": "b"},
    ],
    "tools": TOOLS,
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "include_reasoning": True,
    "chat_template_kwargs": {"thinks": True},
    "speculative": {"strategy": "ar", "gamma": None, "judge": "coupled"},
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "stream": True,
    "max_tokens": 5,
    "logprobs": True,
    "top_logprobs": 1,
}
ALLOWED = {"mode": "required", "tools": [{"type": "function", "name": "f"}]}
SAID = [{"role": "user", "content": "a"}]
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "n", "description": "d", "strict": True, "schema": SCHEMA},
}
FORMED = {"messages": SAID, "max_tokens": 8, "response_format": FORMAT, "temperature": 0}
SAMPLED = {
    "messages": [{"role": "user", "content": "a", "name": "u", "tool_calls": None, "refusal": None}],
    "max_completion_tokens": 4,
    "n": 2,
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["x", "y"],
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"5": 1.5, "6": -100},
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "stop_token_ids": [3],
    "ignore_eos": False,
    "user": "u",
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "continue_final_message": False,
}
COMPLETION = {
    "prompt": ["a", [1, 2]],
    "logit_bias": {"1": 1},
    "stop": ["a"],
    "max_tokens": 4,
    "echo": True,
    "logprobs": 2,
    "stream": False,
    "n": 1,
    "best_of": 1,
    "suffix": None,
    "prompt_logprobs": None,
}
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
    "stream": True,
    "max_output_tokens": 5,
    "temperature": 1,
}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
# What reads a body, the body, and where it is sent.
BODIES: dict[str, tuple[Callable[[object], object], dict[str, Any], str]] = {
    "chat": (read_chat, CHAT, CHATS),
    "allowed": (
        read_chat,
        {**CHAT, "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}},
        CHATS,
    ),
    "auto": (read_chat, {**CHAT, "tool_choice": "auto", "stream": False}, CHATS),
    "formed": (read_chat, FORMED, CHATS),
    "sampled": (read_chat, SAMPLED, CHATS),
    "guided": (
        read_chat,
        {"messages": SAID, "guided_regex": "[ab]{2,4}", "max_tokens": 6, "stream": True},
        CHATS,
    ),
    "vllm": (
        read_chat,
        {"messages": SAID, "structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 6},
        CHATS,
    ),
    "completion": (read_completion, COMPLETION, COMPLETIONS),
    "streamed": (read_completion, {**COMPLETION, "stream": True, "echo": False, "logprobs": 1}, COMPLETIONS),
    "responses": (read_responses, RESPONSES, "/v1/responses"),
    "tokenize": (
        TokenizeRequest.read,
        {"messages": CHAT["messages"], "tools": CHAT["tools"], "return_token_strs": True},
        "/tokenize",
    ),
    "text": (
        TokenizeRequest.read,
        {"prompt": "héllo", "add_special_tokens": True, "model": "m"},
        "/tokenize",
    ),
    "detokenize": (read_tokens, {"tokens": [1, 2, 255], "model": "m"}, "/detokenize"),
}
VALUES = [odd for odd in ODD if not isinstance(odd, Raw)] + [10**400]


@pytest.mark.parametrize("name", BODIES)
def test_odd_values_are_the_clients_fault(name: str) -> None:
    """Odd values in each place of a body: its reader takes them, or refuses them."""
    read, body, _ = BODIES[name]
    read(copy.deepcopy(body))
    rng, refused = Random(name), 0
    cases = [(n, odd) for n in range(len(places(body))) for odd in (*rng.sample(VALUES, 8), ...)]
    for number, odd in cases:
        changed = copy.deepcopy(body)
        container, key = places(changed)[number]
        if odd is ...:
            del container[key]
        else:
            container[key] = copy.deepcopy(odd)
        if rng.random() < 0.2:  # and a second one
            container, key = rng.choice(places(changed) or [({}, "")])
            container[key] = copy.deepcopy(rng.choice(VALUES))
        try:
            read(changed)
        except RequestError as error:
            refused += 1
            assert str(error), changed
            json.dumps(str(error))
    assert refused > len(cases) // 10


@pytest.mark.parametrize("body", [None, [], "x", 5, [CHAT]], ids=str)
def test_what_is_no_object(body: Any) -> None:
    for read, _, _ in BODIES.values():
        with pytest.raises(RequestError, match="must be a JSON object"):
            read(body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = Pair.make("half-right", eos_token_ids=(256,), max_position_embeddings=1024)
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    settings = Settings("m", ChatTemplate(TEMPLATE), defaults=OPENAI_DEFAULTS | {"max_tokens": 6})
    with (
        Engine.from_pretrained(target, draft, device="cpu", max_model_len=1024, num_threads=1) as engine,
        serving(engine, settings) as running,
    ):
        yield running


def draw(rng: Random) -> tuple[str, bytes]:
    """A path and a body."""
    _, body, path = BODIES[rng.choice(list(BODIES))]
    changed = mutated(body, rng)
    if isinstance(changed, dict):
        if isinstance(said := changed.get("messages"), list) and rng.random() < 0.2:
            rng.shuffle(said)
        count, most = changed.get("n"), changed.get("max_tokens")
        if isinstance(most, int) and most > 500 and isinstance(count, int) and count > 4:
            changed["max_tokens"] = 3  # so many tokens that were asked for take their time
    return path, json_bytes(changed, rng)[: 2**22]  # more is not read


def check_error(told: Any) -> None:
    assert isinstance(told, dict) and set(told["error"]) == {"message", "type", "param", "code"}, told
    error = told["error"]
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 3000
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert isinstance(error["code"], str) and isinstance(error["param"], str | None)


def parsed(text: str) -> Any:
    """JSON without Python's own NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def check_events(text: str) -> None:
    """A stream ends as streams do; what went wrong in it was the client's doing."""
    events = [event for event in text.split("\n\n") if event]
    data = [event.rpartition("data: ")[2] for event in events]
    told = [parsed(each) for each in data if each != "[DONE]"]
    assert told and (
        data[-1] == "[DONE]" or told[-1]["type"] in ("response.completed", "response.incomplete", "error")
    )
    for event in told:
        if "error" in event and event.get("type", "error") == "error":
            check_error({"error": event["error"]})


def test_http(fuzzer: Fuzzer, served: Served) -> None:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=60)

    def asked(path: str, body: bytes) -> tuple[int, str, str]:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode(), response.getheader("content-type", "")

    def check(case: tuple[str, bytes]) -> str:
        try:
            status, text, kind = asked(*case)
        except (HTTPException, ConnectionError):  # the last answer closed the connection
            connection.close()
            status, text, kind = asked(*case)
        assert status in (200, 400, 404), (status, text[:1000])
        if status != 200:
            check_error(parsed(text))
        elif kind.startswith("text/event-stream"):
            check_events(text)
        else:
            assert isinstance(parsed(text), dict)
        return str(status)

    outcomes = fuzzer.run(400, draw, check)
    connection.close()
    assert served.call("GET", "/health")[0] == 200
    assert fuzzer.is_alone or {"200", "400"} <= outcomes.keys()
