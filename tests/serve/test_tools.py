"""Tools and reasoning, asked by the `openai` package over a model that answers what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from chains import NAMED, save_answers
from serving import Served, serving

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings
from pearl_rt.serve.chat.tool_use import ToolUse
from pearl_rt.serve.chat.written_tools import with_tools_written
from pearl_rt.serve.completion_request import read_chat
from pearl_rt.serve.fields import FieldError, Fields
from pearl_rt.serve.parsing.forms import Forms

CHAT = "/v1/chat/completions"
ANSWERS = {
    "H": ["Let me", " see.\n<tool", '_call>{"name": "look", "argu', 'ments": {"at": ', '"sea',
          ' é"}}</tool_call>\n', '<tool_call>{"name": "wait"}', "</tool_call>"],
    "B": ["<tool_call>", '{"name": "look", "arguments": {"at": ', "}}", "</tool_call>"],
    "T": ["<think>", "hm, ", "so\n", "</think>", "\n\nYes", "."],
    ">": ["hm\n</think>", "Yes."],
    "M": ["[TOOL_CALLS]", '[{"name": "look", ', '"arguments": {"at": "sea"}}]'],
    "L": ['{"name": "look",', ' "parameters": {"at": "sea"}}'],
    "P": ["plain ", "text"],
}  # fmt: skip
HERMES = (  # with what templates ask of tools, calls and answers
    "{% if tools %}{{ tools | tojson }}{% for t in tools %}{{ t.function.description + '' }}"
    "{% for name, how in t.function.parameters.properties | items %}{{ name }}{% endfor %}{% endfor %}"
    "{% endif %}"
    "<tool_call>{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'tool' and m.name is not defined %}{{ raise_exception('no name') }}{% endif %}"
    "{% for c in m.tool_calls %}({{ c.function.arguments.items() | list }}){% endfor %}"
    "{% if m.content %}{{ m.content }}{% endif %}{% endfor %}"
)
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
WAIT = {"type": "function", "function": {"name": "wait"}}
TOOLS = [LOOK, WAIT]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    special = (*NAMED, "[TOOL_CALLS]")
    path = save_answers(tmp_path_factory.mktemp("model"), ANSWERS, special, max_position_embeddings=2048)
    with Engine.from_pretrained(path, num_threads=1, judge="coupled") as built:
        yield built


def over(engine: Engine, template: str, forms: Forms | None = None) -> Any:
    return serving(engine, Settings("m", ChatTemplate(template), forms))


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    with over(engine, HERMES + "{# </think> #}") as running:
        yield running


def asked(letter: str, **fields: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": letter}]
    return {"model": "m", "messages": said, "temperature": 0, "max_tokens": 40, **fields}


def told(client: openai.OpenAI, **fields: Any) -> tuple[str, str, list[tuple[str, str]], str]:
    """(content, reasoning, calls, finish reason), the same whole and streamed."""
    choice = client.chat.completions.create(**fields).choices[0]
    calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    whole = (choice.message.content or "", getattr(choice.message, "reasoning", None) or "", calls)
    content = reasoning = reason = ""
    streamed: dict[int, list[str]] = {}
    ids: list[str] = []
    for event in client.chat.completions.create(stream=True, **fields):
        [choice] = event.choices
        content += choice.delta.content or ""
        more = getattr(choice.delta, "reasoning_content", "")
        assert more == getattr(choice.delta, "reasoning", "")
        reasoning += more
        for call in choice.delta.tool_calls or ():
            if call.index not in streamed:
                assert call.id and call.type == "function" and call.index == len(streamed)
                ids.append(call.id)
                streamed[call.index] = [call.function.name, ""]
            else:
                assert call.id is None and call.function.name is None and call.index == len(streamed) - 1
            streamed[call.index][1] += call.function.arguments
        reason = choice.finish_reason or reason
    assert len(set(ids)) == len(ids)
    assert (content, reasoning, [(name, arguments) for name, arguments in streamed.values()]) == whole
    return (*whole, reason)


def test_calls_of_hermes(client: openai.OpenAI) -> None:
    content, _, calls, reason = told(client, **asked("H", tools=TOOLS))
    assert calls == [("look", '{"at": "sea é"}'), ("wait", "{}")]
    assert (content, reason) == ("Let me see.", "tool_calls")
    _, _, calls, _ = told(client, **asked("H", tools=TOOLS, parallel_tool_calls=False))
    assert calls == [("look", '{"at": "sea é"}')]


def test_without_tools_calls_are_text(client: openai.OpenAI) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        content, _, calls, reason = told(client, **asked("H", **fields))
        assert not calls and content == "".join(ANSWERS["H"]) and reason == "stop"


def test_a_broken_call_is_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**asked("B", tools=TOOLS))
    assert answer.choices[0].message.content == "".join(ANSWERS["B"])
    assert answer.choices[0].finish_reason == "stop" and not answer.choices[0].message.tool_calls


def test_an_answer_that_is_cut_in_a_call(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asked("H", tools=TOOLS, max_tokens=5)).choices[0]
    assert choice.message.content == "".join(ANSWERS["H"][:5]) and choice.finish_reason == "length"
    choice = client.chat.completions.create(**asked("H", tools=TOOLS, max_tokens=6)).choices[0]
    assert choice.message.tool_calls and choice.finish_reason == "length"


NAMED_LOOK = {"type": "function", "function": {"name": "look"}}


@pytest.fixture(scope="module")
def plain_client(engine: Engine) -> Iterator[openai.OpenAI]:
    """Of a server whose template has no reasoning."""
    with (
        over(engine, HERMES) as running,
        openai.OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=60) as made,
    ):
        yield made


@pytest.mark.parametrize("choice", ["required", NAMED_LOOK], ids=("required", "named"))
def test_calls_that_must_be(plain_client: openai.OpenAI, choice: Any) -> None:
    """The model would write something else."""
    client = plain_client
    where: Any = {"type": "object", "properties": {"at": {"enum": ["sea", "sky"]}}, "required": ["at"]}
    where["additionalProperties"] = False
    look = {"type": "function", "function": {"name": "look", "parameters": where}}
    fields: Any = {"tool_choice": choice, "parallel_tool_calls": False}
    for seed in range(4):
        how = {"temperature": 1.5, "seed": seed, "max_tokens": 100}
        content, _, [(name, arguments)], reason = told(
            client, **asked("P", tools=[look, WAIT], **fields, **how)
        )
        assert (content, reason) == ("", "tool_calls")
        assert json.loads(arguments) in ([{}] if name == "wait" else [{"at": "sea"}, {"at": "sky"}])
    answer = client.chat.completions.create(
        **asked("P", tools=[WAIT], **{**fields, "tool_choice": "required"})
    )
    assert answer.choices[0].message.content is None
    cut = client.chat.completions.create(**asked("P", tools=[look], **fields, max_tokens=2))
    assert cut.choices[0].finish_reason == "length" and not cut.choices[0].message.tool_calls


def test_other_forms_of_calls(engine: Engine) -> None:
    template = "{{ tools | tojson }}{{ messages[-1].content }}"
    for letter, name in (("M", "mistral"), ("L", "llama3_json")):
        forms = Forms.of("", name)
        with (
            over(engine, template, forms) as served,
            openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
        ):
            content, _, calls, reason = told(client, **asked(letter, tools=TOOLS))
            assert (content, calls, reason) == ("", [("look", '{"at": "sea"}')], "tool_calls")
            plain, _, calls, _ = told(client, **asked("P", tools=TOOLS))
            assert (plain, calls) == ("plain text", [])


def test_reasoning(client: openai.OpenAI) -> None:
    assert told(client, **asked("T")) == ("Yes.", "hm, so", [], "stop")
    hidden = asked("T", extra_body={"include_reasoning": False})
    assert told(client, **hidden) == ("Yes.", "", [], "stop")
    cut = client.chat.completions.create(**asked("T", max_tokens=2)).choices[0].message
    assert (cut.content, cut.reasoning_content) == ("", "hm, ")


@pytest.mark.parametrize(("begin", "is_open"), [("<think>", True), ("<think>\n\n</think>", False)])
def test_a_think_block_that_the_prompt_opens(engine: Engine, begin: str, is_open: bool) -> None:
    with (
        over(engine, f"{{# </think> #}}<think>{{{{ messages[0].content }}}}{begin}") as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
    ):
        expected = ("Yes.", "hm", [], "stop") if is_open else ("hm\n</think>Yes.", "", [], "stop")
        assert told(client, **asked("a")) == expected


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": {}}, "tools", "array"),
        ({"tools": [LOOK] * 2}, "tools[1]", "'look'"),
        ({"tools": [LOOK] * 200}, "tools", "128"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "object with a name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "'required'"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}},
            "tool_choice",
            "'fly'",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
            "tool_choice",
            "none of the tools",
        ),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        ({"functions": [{"name": "f"}]}, "functions", "older form"),
        (
            {"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"choice": ["a"]}},
            "tool_choice",
            "two forms",
        ),
    ],
    ids=str,
)
def test_tools_that_cannot_be(served: Served, fields: dict[str, Any], param: str, said: str) -> None:
    status, _, body = served.call("POST", CHAT, asked("P", **fields))
    error = body["error"]
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error"), body
    assert said in error["message"] and error["code"]
    assert served.call("POST", CHAT, asked("P"))[0] == 200


def deep(levels: int) -> Any:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": schema}
    return schema


@pytest.mark.parametrize(
    "schema", [[], "x", True, {"type": "array"}, {"type": ["object"]}, deep(100), {"a": "\ud800"}]
)
def test_schemas_that_cannot_be(served: Served, schema: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    status, _, body = served.call("POST", CHAT, asked("P", tools=[tool]))
    assert status == 400 and body["error"]["code"] == "invalid_function_parameters"
    assert body["error"]["param"] == "tools[0].function.parameters"
    assert served.call("POST", CHAT, asked("P", tools=[LOOK]))[0] == 200


USER, ASKED = {"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL]}
DONE = {"role": "tool", "tool_call_id": "c1", "content": "blueP"}
END = {"role": "user", "content": "P"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([DONE, END], "messages[0]"),
        ([USER, DONE, END], "messages[1]"),
        ([USER, ASKED, END], "messages[2]"),
        ([USER, ASKED], "messages"),
        ([USER, ASKED, DONE, DONE, END], "messages[3]"),
        ([USER, ASKED, {**DONE, "tool_call_id": "c2"}, END], "messages[2]"),
        ([USER, ASKED, {"role": "tool", "content": "x"}, END], "messages[2].tool_call_id"),
        ([USER, ASKED, {**DONE, "content": None}, END], "messages[2].content"),
        ([USER, {**ASKED, "tool_calls": {}}, END], "messages[1].tool_calls"),
        ([USER, {**ASKED, "tool_calls": [5]}, END], "messages[1].tool_calls[0]"),
        ([USER, {**ASKED, "tool_calls": [{**CALL, "id": 5}]}, END], "messages[1].tool_calls[0].id"),
        (
            [USER, {**ASKED, "tool_calls": [{**CALL, "function": {}}]}],
            "messages[1].tool_calls[0].function.name",
        ),
    ],
)
def test_messages_out_of_order(served: Served, messages: list[Any], param: str) -> None:
    status, _, body = served.call("POST", CHAT, asked("P", messages=messages, tools=TOOLS))
    assert (status, body["error"]["param"], body["error"]["code"]) == (400, param, "invalid_value"), body
    assert served.call("POST", CHAT, asked("P"))[0] == 200


def test_a_turn_with_a_tool(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**asked("H", tools=TOOLS)).choices[0].message
    said: list[Any] = [{"role": "user", "content": "H"}, first]
    said += [{"role": "tool", "tool_call_id": c.id, "content": "blueP"} for c in first.tool_calls or ()]
    answer = client.chat.completions.create(**asked("", messages=said, tools=TOOLS)).choices[0]
    assert answer.message.content == "plain text"


def test_arguments_are_text_for_templates_to_take_apart() -> None:
    calls = [
        {"id": str(place), "type": "function", "function": {"name": "f", "arguments": arguments}}
        for place, arguments in enumerate(("", None, {"a": "é"}, "no JSON"))
    ]
    done = [{"role": "tool", "tool_call_id": str(place), "content": "x"} for place in range(4)]
    said = read_chat(
        {"messages": [USER, {"role": "assistant", "tool_calls": calls, "reasoning": "r"}, *done]}
    )
    read = said.messages[1]
    assert [c["function"]["arguments"] for c in read["tool_calls"]] == ["{}", "{}", '{"a": "é"}', "no JSON"]
    assert read["reasoning_content"] == "r"
    assert {message["name"] for message in said.messages[2:]} == {"f"}


def test_tools_for_a_template_that_knows_none(engine: Engine) -> None:
    written = with_tools_written([{"role": "system", "content": "S"}, USER, ASKED, DONE, DONE, END], TOOLS)
    assert [message["role"] for message in written] == ["system", "user", "assistant", "user", "user"]
    assert written[0]["content"].startswith("S\n\nYou can call functions.")
    assert json.dumps(LOOK) in written[0]["content"]
    assert written[2]["content"] == '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'
    assert written[3]["content"].count("<tool_response>\nblueP\n</tool_response>") == 2
    assert with_tools_written([USER, END]) == [USER, END]
    with (
        over(engine, "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}") as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
    ):
        assert told(client, **asked("H", tools=TOOLS))[2][0] == ("look", '{"at": "sea é"}')
        usage = [
            client.chat.completions.create(**asked("P", **more)).usage for more in ({}, {"tools": TOOLS})
        ]
        assert usage[1].prompt_tokens > usage[0].prompt_tokens + 200


@pytest.mark.parametrize("is_in_files", [False, True], ids=("in-settings", "in-files"))
def test_a_template_of_its_own_for_tools(engine: Engine, tmp_path: Path, is_in_files: bool) -> None:
    both = {"default": "plain {{ messages[-1].content }}", "tool_use": HERMES}
    settings = {} if is_in_files else {"chat_template": [{"name": n, "template": both[n]} for n in both]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text("{}")
    if is_in_files:
        (tmp_path / "chat_template.jinja").write_text(both["default"])
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(HERMES)
    template = ChatTemplate.from_pretrained(tmp_path)
    assert template.source == both["default"] and template.for_tools is not None
    with serving(engine, Settings("m", template)) as served:
        plain = served.call("POST", CHAT, asked("H"))[2]
        assert plain["usage"]["prompt_tokens"] == len("plain H")
        told = served.call("POST", CHAT, asked("H", tools=TOOLS))[2]
        assert told["usage"]["prompt_tokens"] > len(json.dumps(TOOLS))
        assert told["choices"][0]["finish_reason"] == "tool_calls"


def test_a_form_of_calls_that_is_not_known(engine: Engine) -> None:
    with over(engine, "{{ tools }}{{ messages[-1].content }}") as served:
        status, _, body = served.call("POST", CHAT, asked("P", tools=TOOLS))
        assert status == 400 and "--tool-call-parser" in body["error"]["message"]
        assert served.call("POST", CHAT, asked("P", tools=TOOLS, tool_choice="required"))[0] == 200


def test_the_schema_of_calls_that_must_be() -> None:
    tree = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
        "$defs": {},
    }
    tools = [WAIT, {"type": "function", "function": {"name": "tree", "parameters": tree}}]
    use = ToolUse.read(Fields({"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}))
    assert use is not None
    schema = use.schema()
    assert schema is not None and (schema["minItems"], schema["maxItems"]) == (1, 1)
    assert [call["properties"]["name"]["enum"] for call in schema["items"]["anyOf"]] == [["wait"], ["tree"]]
    assert schema["$defs"]["tree"]["properties"]["next"] == {"$ref": "#/$defs/tree"}
    assert schema["$defs"]["tree"]["properties"]["leaf"] == {"$ref": "#/$defs/tree/$defs/leaf"}
    assert schema["$defs"]["wait"]["additionalProperties"] is False
    named = {"tools": tools, "tool_choice": {"type": "function", "name": "tree"}}
    asked = read_chat({"messages": [USER], **named})
    form = asked.params.structured_outputs
    assert form is not None and form.json is not None and json.loads(form.json) == tree
    few = {"mode": "required", "tools": [{"type": "function", "function": {"name": "wait"}}]}
    allowed = {"type": "allowed_tools", "allowed_tools": few}
    use = ToolUse.read(Fields({"tools": tools, "tool_choice": allowed}))
    assert use is not None and (use.names, use.choice) == (("wait",), "required")
    filled = {"description": "", "name": "wait", "parameters": {"type": "object", "properties": {}}}
    assert use.tools[0]["function"] == filled
    for wrong in ({**few, "mode": "x"}, {**few, "tools": []}, {**few, "tools": [5]}, 5):
        with pytest.raises(FieldError, match="tool_choice must be"):
            ToolUse.read(Fields({"tools": tools, "tool_choice": {**allowed, "allowed_tools": wrong}}))
