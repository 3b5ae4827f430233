"""/v1/responses, asked by the `openai` package over a model that answers what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import openai
import pytest
from chains import save_answers
from serving import Served, serving

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings
from pearl_rt.serve.responses.request import read_responses

RESPONSES = "/v1/responses"
ANSWERS = {
    "P": ["plain ", "text"],
    "T": ["<think>", "hm", "</think>", "Yes."],
    "H": ["I see: ", '<tool_call>{"name": "look", "argum', 'ents": {"at": "', 'sea"}}', "</tool_call>"],
    "B": ['<tool_call>{"name": "look", "arguments": {"at": ', "}} oh"],
}
TEMPLATE = (
    "{{ tools | tojson if tools else '' }}{# <tool_call></think> #}{% for m in messages %}[{{ m.role }}]"
    "{{ m.reasoning_content or '' }}{{ m.tool_calls[0].function.name if m.tool_calls else '' }}"
    "{{ m.content or '' }}{% endfor %}"
)
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = save_answers(tmp_path_factory.mktemp("model"), ANSWERS)
    with (
        Engine.from_pretrained(path, num_threads=1) as engine,
        serving(engine, Settings("m", ChatTemplate(TEMPLATE))) as running,
    ):
        yield running


def both(client: openai.OpenAI, **fields: Any) -> tuple[Any, list[Any]]:
    """The response, the same at the end of a stream; and the events."""
    asked = {"model": "m", "temperature": 0, "max_output_tokens": 20, **fields}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert without_ids(last.model_dump()) == without_ids(whole.model_dump())
    return whole, events


def without_ids(told: Any) -> Any:
    if isinstance(told, dict):
        return {
            name: without_ids(value)
            for name, value in told.items()
            if name not in ("id", "call_id", "created_at")
        }
    return [without_ids(item) for item in told] if isinstance(told, list) else told


def test_text(client: openai.OpenAI) -> None:
    response, events = both(client, instructions="be", input="P")
    assert response.output_text == "plain text" and response.status == "completed"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len("[system]be[user]P"), 3)
    assert response.instructions == "be" and response.temperature == 0
    kinds = [kind for kind, _ in groupby(event.type for event in events)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type.endswith(".delta")) == "plain text"
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1
    assert events[-4].text == "plain text" and events[-2].item.content[0].text == "plain text"


def test_an_answer_that_is_cut(client: openai.OpenAI) -> None:
    response, events = both(client, input="P", max_output_tokens=1)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text == "plain " and events[-1].type == "response.incomplete"


def test_calls_and_reasoning(client: openai.OpenAI) -> None:
    response, events = both(client, input="H", tools=[LOOK])
    text, call = response.output
    assert (text.content[0].text, call.name, call.arguments) == ("I see:", "look", '{"at": "sea"}')
    kinds = [event.type for event in events]
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    done = events[kinds.index("response.function_call_arguments.done")]
    assert (done.arguments, done.output_index) == ('{"at": "sea"}', 1)
    assert response.tools[0].name == "look" and response.tool_choice == "auto"
    response, events = both(client, input="T")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "hm" and response.output_text == "Yes."
    assert "response.reasoning_text.delta" in [event.type for event in events]


def test_a_broken_call(client: openai.OpenAI) -> None:
    asked: Any = {"model": "m", "temperature": 0, "input": "B", "tools": [LOOK]}
    assert client.responses.create(**asked).output_text == "".join(ANSWERS["B"])
    events = list(client.responses.create(stream=True, **asked))
    call, text = events[-1].response.output
    assert (call.arguments, call.status, text.content[0].text) == ('{"at": ', "incomplete", "}} oh")


def test_what_was_said_is_sent_again(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", temperature=0, input="H", tools=[LOOK])
    call = first.output[1]
    said: Any = [{"role": "user", "content": [{"type": "input_text", "text": "H"}]}, *first.output]
    said.append({"type": "function_call_output", "call_id": call.call_id, "output": "blueP"})
    assert (
        client.responses.create(model="m", temperature=0, input=said, tools=[LOOK]).output_text
        == "plain text"
    )


def test_items_as_messages() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    body = {
        "input": [
            {"type": "message", "role": "user", "content": "a"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "b"}, {"text": "c"}]},
            call,
            {**call, "call_id": "2"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call_output", "call_id": "2", "output": "y"},
            {"role": "assistant", "content": "d"},
        ]
    }
    messages = read_responses(body).chat.messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert (messages[1]["content"], messages[1]["reasoning_content"]) == ("b\nc", "r")
    assert [made["id"] for made in messages[1]["tool_calls"]] == ["1", "2"]
    assert [message["content"] for message in messages[2:]] == ["x", "y", "d"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"role": 5, "content": "a"}]}, "input[0].role"),
        ({"input": "a", "tools": {}}, "tools"),
        ({"input": "a", "tools": 0}, "tools"),
        ({"input": "a", "text": {"format": {"type": "text", "nonsense": 1}}}, "nonsense"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "a"}]}, "messages[0]"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": "a", "max_output_tokens": "x"}, "max_output_tokens"),
        ({"input": "a", "nonsense": 1}, "nonsense"),
        ({"input": "a", "stream": 1}, "stream"),
    ],
    ids=str,
)
def test_what_cannot_be_answered(served: Served, fields: dict[str, Any], param: str) -> None:
    status, _, told = served.call("POST", RESPONSES, {"model": "m", **fields})
    assert (status, told["error"]["param"]) == (400, param) and told["error"]["code"], told
    assert served.call("POST", RESPONSES, {"model": "m", "input": "P"})[0] == 200
    assert served.call("POST", RESPONSES, {"model": "other", "input": "P"})[0] == 404


def test_fields_that_are_repeated_may_be_no_utf8(served: Served) -> None:
    for stream in (False, True):
        body = {"model": "m", "input": "P", "metadata": {"a": "\ud800"}, "stream": stream}
        status, _, told = served.call("POST", RESPONSES, body)
        assert status == 200 and '"a":"?"' in json.dumps(told, separators=(",", ":")).replace("\\", "")
    status, _, told = served.call("POST", RESPONSES, '{"input": "P", "metadata": {"a": NaN}}')
    assert status == 400 and "NaN is no value of JSON" in told["error"]["message"]
    status, _, told = served.call("POST", RESPONSES, '{"input": "P", "metadata": {"a": 1e999}}')
    assert status == 400 and "1e999 is larger" in told["error"]["message"]


def test_tokens_of_texts_and_chats(served: Served) -> None:
    status, _, told = served.call(
        "POST", "/tokenize", {"model": "m", "prompt": "hé", "return_token_strs": True}
    )
    assert status == 200 and told["tokens"] == list("hé".encode()) and told["count"] == 3
    assert told["max_model_len"] == 512 and len(told["token_strs"]) == 3
    said = [{"role": "user", "content": "P"}]
    _, _, chat = served.call("POST", "/tokenize", {"messages": said})
    assert bytes(chat["tokens"]) == b"[user]P" and chat["token_strs"] is None
    tool = {"type": "function", "function": {"name": "look"}}
    _, _, longer = served.call("POST", "/tokenize", {"messages": said, "tools": [tool]})
    assert longer["count"] > chat["count"]
    _, _, back = served.call("POST", "/detokenize", {"model": "m", "tokens": [*told["tokens"], 257]})
    assert back == {"prompt": "hé<|im_start|>"}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "x": 1}, "x"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, None),
        ("/detokenize", {"tokens": [10**9]}, None),
        ("/detokenize", {"tokens": [1.5]}, None),
    ],
    ids=str,
)
def test_what_is_no_text_and_no_tokens(
    served: Served, path: str, fields: dict[str, Any], param: str | None
) -> None:
    status, _, told = served.call("POST", path, fields)
    assert (status, told["error"]["param"]) == (400, param), told
    assert served.call("POST", path, {**fields, "model": "other", "prompt": "a"})[0] in (400, 404)
