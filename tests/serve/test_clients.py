"""Requests as clients send them: fields of newer clients, echo, continued messages, defaults, web pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
from chains import chain, save_chain
from serving import Served, serving

from pearl_rt import CheckpointError, Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.answering import _event, encoded
from pearl_rt.serve.app import Settings
from pearl_rt.serve.completion_request import read_chat, sampling_defaults
from pearl_rt.serve.server import allowed_hosts

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SMILE = "w\U0001f60ard"
TALK = [{"role": "user", "content": "hi"}]
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After "a" comes SMILE, after "x" comes "yz"; "A" is followed by B or C, by chance."""
    follows: dict[int, Any] = {**chain("a" + SMILE), **chain("xyz")}
    follows |= {65: {66: 20.2, 67: 20.0}, 66: {65: 20.0}, 67: {65: 20.0}, 93: 120}
    return save_chain(tmp_path_factory.mktemp("model"), follows)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(model, num_threads=1) as built:
        yield built


@pytest.fixture(scope="module")
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine, Settings("m", ChatTemplate(TEMPLATE), origins=[ORIGIN])) as running:
        yield running


def ask(served: Served, path: str, **fields: Any) -> Any:
    status, _, told = served.call("POST", path, {"temperature": 0, "max_tokens": 7, **fields})
    assert status == 200, told
    return told


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_bytes_of_tokens_are_their_own_and_offsets_count_characters(served: Served) -> None:
    told = ask(served, CHAT, messages=[{"role": "user", "content": "a"}], max_tokens=3, logprobs=True)
    assert told["choices"][0]["logprobs"]["content"][0]["bytes"] == [120]
    plain = ask(served, COMPLETIONS, prompt="a", logprobs=1)["choices"][0]
    assert plain["text"] == SMILE
    assert plain["logprobs"]["text_offset"] == [0, 1, 1, 1, 1, 2, 3]
    said = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]
    told = ask(served, CHAT, messages=said, continue_final_message=True, logprobs=True)
    assert told["choices"][0]["message"]["content"] == SMILE
    content = told["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content) == SMILE.encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "low"},
        {"verbosity": "low"},
        {"prediction": {"type": "content", "content": "abc"}},
        {"best_of": 1},
        {"add_generation_prompt": True},
        {"continue_final_message": False},
        {"echo": False},
        {"skip_special_tokens": True},
        {"seed": -1, "top_p": 0, "temperature": 1e-8},
        {"stream_options": None, "stop": None, "tools": [], "logit_bias": None, "n": None},
    ],
    ids=str,
)
def test_hints_of_newer_clients_change_nothing(served: Served, fields: dict[str, Any]) -> None:
    told = ask(served, CHAT, messages=TALK, **fields)
    assert told["choices"][0]["message"]["content"] == "xyz"


def test_usage_of_every_chunk(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, asked, prompt in ((CHAT, {"messages": TALK}, 20), (COMPLETIONS, {"prompt": "x"}, 1)):
        body = {"temperature": 0, "stream": True, "stream_options": options, **asked}
        _, _, text = served.call("POST", path, body)
        usages = [event["usage"] for event in events(text)]
        counts = [usage["completion_tokens"] for usage in usages if usage is not None]
        assert counts == sorted(counts) and counts[-1] == counts[-2] >= 3
        assert {usage["prompt_tokens"] for usage in usages if usage is not None} == {prompt}


def test_the_last_message_is_continued(served: Served) -> None:
    said = [*TALK, {"role": "assistant", "content": "ax"}]
    asked = {"messages": said, "continue_final_message": True}
    for more in ({}, {"add_generation_prompt": False}):
        told = ask(served, CHAT, **asked, **more)
        assert told["choices"][0]["message"]["content"] == "yz"
        assert told["usage"]["prompt_tokens"] == len("[user]hi|[assistant]ax")
    status, _, told = served.call("POST", CHAT, {**asked, "add_generation_prompt": True})
    assert status == 400 and told["error"]["param"] == "continue_final_message"


def test_null_content_stays_and_a_missing_one_is_missing() -> None:
    said = [{"role": "assistant", "content": None}, {"role": "assistant"}]
    assert read_chat({"messages": said}).messages == tuple(said)


@pytest.mark.parametrize("max_tokens", [0, 1, 2])
@pytest.mark.parametrize("prompt", ["ABA", list(b"ABA")], ids=["text", "ids"])
def test_echo_with_log_probabilities_of_the_prompt(served: Served, max_tokens: int, prompt: Any) -> None:
    asked = {"prompt": prompt, "max_tokens": max_tokens, "echo": True, "logprobs": 2}
    told = ask(served, COMPLETIONS, **asked)
    choice = told["choices"][0]
    assert choice["text"] == "ABA" + "BA"[:max_tokens] and choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    values, likeliest = logprobs["token_logprobs"], logprobs["top_logprobs"]
    assert logprobs["tokens"] == list(choice["text"]) and len(values) == len(likeliest) == 3 + max_tokens
    assert logprobs["text_offset"] == list(range(3 + max_tokens))
    assert values[0] is None and likeliest[0] is None
    b = -log(1 + 2.718281828**-0.2)
    assert values[1:] == pytest.approx([b, 0.0, b, 0.0][: 2 + max_tokens], abs=1e-4)
    assert max(likeliest[1].values()) == values[1] and likeliest[1].keys() >= {"B", "C"}
    assert told["usage"]["completion_tokens"] == max_tokens


def test_echo_of_several_prompts_and_answers(served: Served) -> None:
    told = ask(served, COMPLETIONS, prompt=["x", [97]], echo=True, n=2, temperature=1)
    assert [choice["text"] for choice in told["choices"]] == ["xyz"] * 2 + ["a" + SMILE] * 2
    body = {"prompt": ["x", "a"], "temperature": 0, "echo": True, "stream": True}
    texts = ["", ""]
    for event in events(served.call("POST", COMPLETIONS, body)[2]):
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["xyz", "a" + SMILE]
    status, _, told = served.call("POST", COMPLETIONS, {**body, "logprobs": 1})
    assert status == 400 and told["error"]["param"] == "stream"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_k": 1}, {"temperature": 0.6, "top_k": 1}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"top_p": None, "repetition_penalty": 1.05, "max_new_tokens": 20},
         {"temperature": 1.0, "repetition_penalty": 1.05, "max_tokens": 20}),
        ({}, {"temperature": 1.0}),
    ],
    ids=str,
)  # fmt: skip
def test_the_defaults_are_those_of_the_checkpoint(
    tmp_path: Path, told: dict[str, Any], expected: dict[str, Any]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert sampling_defaults(tmp_path) == {"seed": None, **expected}


def test_defaults_that_cannot_be_are_told(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {"temperature": 1.0, "seed": None}
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": [2]}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p must be a number"):
        sampling_defaults(tmp_path)


def test_a_body_goes_before_the_defaults(engine: Engine) -> None:
    defaults = {"temperature": 0.6, "top_k": 1, "max_tokens": 5, "seed": None}
    with serving(engine, Settings("m", ChatTemplate(TEMPLATE), defaults=defaults)) as served:
        said = {"messages": [{"role": "assistant", "content": "A"}], "continue_final_message": True}
        texts = {served.call("POST", CHAT, said)[2]["choices"][0]["message"]["content"] for _ in range(6)}
        others = {
            served.call("POST", CHAT, {**said, "top_k": 0, "temperature": 1.0, "max_tokens": 8})[2][
                "choices"
            ][0]["message"]["content"]
            for _ in range(12)
        }
    assert texts == {"BABAB"} and len(others) > 1 and {len(text) for text in others} == {8}


def test_pages_of_allowed_origins_may_ask(engine: Engine) -> None:
    beforehand = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for origins, status, allowed in (([ORIGIN], 200, ORIGIN), (["*"], 200, "*"), ([], 401, None)):
        with serving(engine, Settings("m", api_key="k", origins=origins)) as served:
            found, headers, _ = served.call("OPTIONS", COMPLETIONS, headers=beforehand)
            assert (found, headers.get("access-control-allow-origin")) == (status, allowed)
            body, key = {"prompt": "x", "max_tokens": 1}, {"authorization": "Bearer k"}
            found, headers, _ = served.call("POST", COMPLETIONS, body, {"origin": ORIGIN, **key})
            assert (found, headers.get("access-control-allow-origin")) == (200, allowed)
            found, headers, _ = served.call("POST", COMPLETIONS, body, {"origin": ORIGIN})
            assert (found, headers.get("access-control-allow-origin")) == (401, allowed)
            if origins == [ORIGIN]:
                other = {**beforehand, "origin": "https://evil.example"}
                found, headers, _ = served.call("OPTIONS", COMPLETIONS, headers=other)
                assert found == 400 and "access-control-allow-origin" not in headers


def test_a_prompt_that_does_not_fit_has_a_code(served: Served) -> None:
    for path, fields in (
        (CHAT, {"messages": [{"role": "user", "content": "a" * 512}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 10**6}]}),
        (COMPLETIONS, {"prompt": "a" * 512}),
        (COMPLETIONS, {"prompt": [97] * 600}),
        (COMPLETIONS, {"prompt": ["a", "a" * 10**6]}),
    ):
        status, _, told = served.call("POST", path, fields)
        assert (status, told["error"]["code"]) == (400, "context_length_exceeded")


def test_special_tokens_are_shown_where_they_are_asked_for(tmp_path: Path) -> None:
    path = save_chain(tmp_path / "m", {97: 257, 257: 98, 98: 258})
    with Engine.from_pretrained(path, num_threads=1) as engine, serving(engine, Settings("m")) as served:
        for shown, text in ((True, "b"), (False, "<|im_start|>b")):
            told = ask(served, COMPLETIONS, prompt="a", skip_special_tokens=shown)
            assert told["choices"][0]["text"] == text


def test_line_ends_of_unicode_end_no_event() -> None:
    event = _event({"text": "a\u2028b\u2029c\x85d\u00e9"})
    assert len(event.decode().splitlines()) == 2
    assert json.loads(event.removeprefix(b"data: ")) == {"text": "a\u2028b\u2029c\x85d\u00e9"}


def test_whole_answers_are_written_piece_by_piece() -> None:
    content: Any = {"a": [{"b": {"c": [[{"d": [1, None, "é\n"]}]]}}], "e": {}, "f": [], "g": True, 'h"': 1.5}
    assert json.loads(encoded(content)) == content
    assert encoded(content) == json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def test_other_names_of_the_host() -> None:
    assert allowed_hosts("127.0.0.1", None, ["Pearl.local"])[-1] == "pearl.local"
    assert allowed_hosts("0.0.0.0", "key", ["x"]) is None
