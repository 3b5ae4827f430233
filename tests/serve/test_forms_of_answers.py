"""Forms over HTTP, by the names of OpenAI and of vLLM: answers keep to them; what cannot be is a 400."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine, StructuredOutputsParams
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings
from pearl_rt.serve.completion_request import read_chat

TEMPLATE = ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}")
TALK = [{"role": "user", "content": "x"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
BODY = {"model": "tiny", "messages": TALK}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = Pair.make("half-right", eos_token_ids=(256,))
    target, draft = pair.save(tmp_path_factory.mktemp("pair"))
    with (
        Engine.from_pretrained(target, draft, device="cpu", max_model_len=1024) as engine,
        serving(engine, Settings("tiny", TEMPLATE)) as running,
    ):
        yield running


def test_a_schema(client: openai.OpenAI) -> None:
    for seed in range(5):
        answer = client.chat.completions.create(**BODY, response_format=FORMAT, seed=seed, temperature=1.5)
        found = json.loads(answer.choices[0].message.content)
        assert found["name"] in ("Ann", "Bob") and found["old"] in (True, False) and len(found) == 2
        assert answer.choices[0].finish_reason == "stop"


def test_a_schema_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**BODY, response_format=FORMAT, stream=True, temperature=0)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    whole = client.chat.completions.create(**BODY, response_format=FORMAT, temperature=0)
    assert text == whole.choices[0].message.content and json.loads(text)["name"] in ("Ann", "Bob")


def test_any_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **BODY, response_format={"type": "json_object"}, max_tokens=60, logit_bias={"92": 3.0}
    )
    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": FORMAT}, {"json": PERSON}),
        ({"guided_json": PERSON}, {"json": PERSON}),
        ({"guided_json": json.dumps(PERSON)}, {"json": PERSON}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ("a", "b")}),
        ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"structured_outputs": {"choice": ["a"]}}, {"choice": ("a",)}),
    ],
)
def test_names_of_fields(fields: dict[str, Any], form: dict[str, Any] | None) -> None:
    found = read_chat({**BODY, **fields}).params.structured_outputs
    assert found == (None if form is None else StructuredOutputsParams(**form))


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format", "must be one of text, json_object"),
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, None, "JSON schema"),
        ({"response_format": {**FORMAT, "type": "json_object"}}, None, "needs the type json_schema"),
        ({"response_format": {"type": "json_object", "scheme": {}}}, "scheme", "not a field"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex", "pass one of them"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, None, "pass one of them"),
        ({"guided_choice": 3}, "guided_choice", "must be a text or a list of texts"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, None, "exactly one"),
        ({"guided_json": {"not": {}}}, None, 'not supported: "not"'),
        ({"guided_json": {"$ref": "#"}}, None, "inside itself without end"),
        ({"guided_regex": "a{1000}{1000}{1000}"}, None, "repeats parts"),
        ({"guided_grammar": "x"}, None, "neither Lark"),
        ({"guided_regex": "a", "ignore_eos": True}, None, "ignore_eos"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_a_400(
    client: openai.OpenAI, fields: dict[str, Any], param: str | None, said: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            client.chat.completions.create(**BODY, extra_body=fields, stream=stream)
        assert param is None or caught.value.param == param
        assert caught.value.body["message"]
    plain = client.chat.completions.create(**BODY, max_tokens=3, extra_body={"ignore_eos": True})
    assert plain.usage.completion_tokens == 3


def test_a_form_is_compiled_off_the_event_loop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is, the server answers."""
    import threading

    from pearl_rt.grammar.forms import Forms

    begun, goes_on, compiled = threading.Event(), threading.Event(), Forms._compiled

    def slow(self: Forms, asked: StructuredOutputsParams) -> object:
        begun.set()
        assert goes_on.wait(30)
        return compiled(self, asked)

    monkeypatch.setattr(Forms, "_compiled", slow)
    body = {**BODY, "guided_regex": "slowly"}
    answers: list[Any] = []
    client = threading.Thread(
        target=lambda: answers.append(served.call("POST", "/v1/chat/completions", body))
    )
    client.start()
    assert begun.wait(30)
    begin = time.monotonic()
    assert served.call("GET", "/health")[0] == 200
    status, _, free = served.call("POST", "/v1/chat/completions", {**BODY, "max_tokens": 2})
    assert (status, free["usage"]["completion_tokens"]) == (200, 2) and not answers
    goes_on.set()
    client.join(60)
    assert answers[0][0] == 200, time.monotonic() - begin
    assert answers[0][2]["choices"][0]["message"]["content"] == "slowly"
