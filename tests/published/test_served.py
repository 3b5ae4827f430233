"""SmolLM2-135M-Instruct behind `serve`, asked by the `openai` package: chat, tools, forms, responses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from bench.model_pairs.published import published_model

ROOT = Path(__file__).resolve().parents[2]
NAME = "smollm2"
SAID: Any = [
    {"role": "system", "content": "You are a helpful assistant. Be short."},
    {"role": "user", "content": "What is the capital of France?"},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "country": {"type": "string", "maxLength": 20},
        "is_capital": {"type": "boolean"},
        "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
    },
    "required": ["city", "country", "is_capital"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "description": "The time."}}
GREEDY: Any = {"model": NAME, "temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """Of the server as a user starts it: the GGUF file alone, drafts by lookup."""
    command = [sys.executable, "-m", "pearl_rt", "serve", "--target", str(published_model())]
    command += ["--port", "0", "--model-name", NAME, "--max-model-len", "2048"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = next((line for line in process.stderr if "/v1; Ctrl-C stops" in line), "")
    found = re.search(r"at (http://[^ ]+/v1);", line)
    assert found, "no server"
    with openai.OpenAI(base_url=found[1], api_key="none", max_retries=0, timeout=280) as made:
        yield made
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stderr.close()


def test_chat(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    answer = client.chat.completions.create(messages=SAID, **GREEDY)
    [choice] = answer.choices
    assert "Paris" in choice.message.content and choice.finish_reason == "stop"
    assert "<|im_end|>" not in choice.message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.chat.completions.create(messages=SAID, **GREEDY)
    assert again.choices[0].message.content == choice.message.content
    for how in ("ar", "sd", "pearl"):
        other = client.chat.completions.create(
            messages=SAID, **GREEDY, extra_body={"speculative": {"strategy": how}}
        )
        assert other.choices[0].message.content == choice.message.content, how


def test_streaming(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=SAID, **GREEDY, n=1, seed=5)
    usage: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(messages=SAID, **GREEDY, seed=5, stream=True, stream_options=usage)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and len(chunks) > 4
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    sampled: Any = GREEDY | {"temperature": 0.8, "seed": 11}
    texts = {
        client.chat.completions.create(messages=SAID, **sampled).choices[0].message.content for _ in range(2)
    }
    assert len(texts) == 1
    cut = client.chat.completions.create(messages=SAID, **GREEDY, stop=["Paris"]).choices[0]
    assert cut.finish_reason == "stop" and "Paris" not in cut.message.content


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=SAID, **GREEDY, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    shown = b"".join(bytes(token.bytes) for token in told).decode()
    assert shown.startswith(answer.choices[0].message.content)
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in told)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_tools_that_must_be_called(client: openai.OpenAI, choice: Any) -> None:
    said: Any = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
    asked: Any = {
        "messages": said,
        "tools": [WEATHER, CLOCK],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    asked |= GREEDY | {"max_tokens": 200}
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    pieces = [piece.function for delta in deltas for piece in delta.tool_calls or ()]
    assert pieces[0].name == call.function.name
    assert "".join(piece.arguments for piece in pieces) == call.function.arguments
    said = [*said, answer.message, {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21}'}]
    after = client.chat.completions.create(messages=said, tools=[WEATHER, CLOCK], **GREEDY).choices[0]
    assert after.message.content or after.message.tool_calls


def test_tools_that_may_be_called(client: openai.OpenAI) -> None:
    """Whatever so small a model writes, the whole answer and the stream say the same."""
    said: Any = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
    asked: Any = {"messages": said, "tools": [WEATHER], **GREEDY}
    message = client.chat.completions.create(**asked).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    names = [
        piece.function.name for delta in deltas for piece in delta.tool_calls or () if piece.function.name
    ]
    assert names == [call.function.name for call in message.tool_calls or ()]


def test_a_schema(client: openai.OpenAI) -> None:
    said: Any = [{"role": "user", "content": "Describe Paris as JSON."}]
    for seed in range(4):
        asked: Any = {**GREEDY, "messages": said, "response_format": FORMAT, "max_tokens": 200}
        asked |= {"temperature": 0.9 * (seed > 0), "seed": seed}
        answer = client.chat.completions.create(**asked).choices[0]
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.message.content), SCHEMA)
        streamed = client.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == answer.message.content


def test_responses(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "temperature": 0, "max_output_tokens": 60}
    asked |= {"instructions": "Be short.", "input": "What is the capital of France?"}
    whole = client.responses.create(**asked)
    assert "Paris" in whole.output_text and whole.status == "completed"
    events = list(client.responses.create(**asked, stream=True))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text and events[-1].type == "response.completed"
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}}
    formed = client.responses.create(**asked | {"max_output_tokens": 200}, text=form)
    jsonschema.validate(json.loads(formed.output_text), SCHEMA)
    tool: Any = {"type": "function", **WEATHER["function"]}
    called = client.responses.create(
        **asked | {"max_output_tokens": 200}, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    [call] = [item for item in called.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    said: Any = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 21}'},
    ]
    assert client.responses.create(**asked | {"input": said}, tools=[tool]).output


def test_completions_and_tokens(client: openai.OpenAI) -> None:
    told = client.completions.create(
        model=NAME, prompt="The capital of France is", temperature=0, max_tokens=5
    )
    assert "Paris" in told.choices[0].text
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="a " * 5000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
