"""Chats on the page: turns, marks that add up, a stop, errors, a key, forms, a model without a template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from page_reader import Reader
from playwright.sync_api import expect
from serving import Served, serving

from pearl_rt import Engine
from pearl_rt.serve.app import Settings
from pearl_rt.types.rounds import ORIGINS

Read = Callable[..., Reader]


def test_two_turns(reader: Read, served: Served) -> None:
    own = reader(served)
    own.set(max_tokens=60, temperature=0, strategy="sd", gamma=3, system="Be short.")
    for turn, question in enumerate(("Hello there", "And again"), 1):
        own.ask(question)
        own.wait_for_answers(turn)
        assert own.legend() == {**dict.fromkeys(ORIGINS, 0), **own.coloured()}
        assert sum(own.coloured().values()) == own.number("#total") == 60
        expect(own.page.locator(".caption").last).to_contain_text("60 tokens · ")
    first, second = own.bodies
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    shown = own.page.locator(".answer").first.evaluate("own => own.textContent")
    assert second["messages"][2]["content"] == shown
    assert second["messages"][3]["content"] == "And again"
    assert (first["temperature"], first["max_tokens"]) == (0, 60)
    expect(own.page.locator("#turns")).to_have_attribute("aria-busy", "false")
    expect(own.page.locator("#figures")).to_be_visible()
    expect(own.page.locator("#why")).to_contain_text("Drafter: a draft model.")
    own.page.locator("#again").click()
    expect(own.page.locator(".answer")).to_have_count(0)
    own.ask("Anew")
    own.wait_for_answers(1)
    assert [m["role"] for m in own.bodies[-1]["messages"]] == ["system", "user"]


def test_the_figures_are_the_servers(reader: Read, served: Served) -> None:
    own = reader(served)
    own.set(max_tokens=80, temperature=0, strategy="pearl", gamma=4)
    own.ask("x")
    own.wait_for_answers(1)
    whole = {**own.bodies[-1], "stream": False}
    del whole["stream_options"]
    told = served.call("POST", "/v1/chat/completions", whole)[2]["usage"]["speculation"]
    assert own.legend() == told["origins"] and told["strategy"] == "pearl"
    expect(own.page.locator("#per-round")).to_have_text(f"{told['tokens_per_round']:.2f}")
    expect(own.page.locator("#places li")).to_have_count(len(told["judged_at"]))
    expect(own.page.locator("#speeds dt")).to_have_text(["with speculation", "plain decoding"])
    expect(own.page.locator(".lane")).to_have_count(2)
    with own.page.expect_download() as waiting:
        own.page.locator("#trace").click()
    events = json.loads(Path(waiting.value.path()).read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"draft", "target"}
    assert (
        sum(event["ph"] == "X" and event["name"].startswith("score") for event in events) > told["rounds"] / 2
    )


def test_a_stop(reader: Read, served: Served) -> None:
    own = reader(served)
    own.set(max_tokens=30000, temperature=0)
    for turn, key in enumerate(("Escape", "button"), 1):
        own.ask("on and on")
        expect(own.page.locator(".answer").last.locator(".token").nth(30)).to_be_attached(timeout=30_000)
        if key == "button":
            own.page.locator("#stop").click()
        else:
            own.page.keyboard.press(key)
        own.wait_for_answers(turn)
        expect(own.page.locator(".caption").last).to_contain_text("stopped")
        expect(own.page.locator("#stop")).to_be_hidden()
        count = own.number("#total")
        assert 30 < count < 30000 and sum(own.legend().values()) == sum(own.coloured().values()) == count
    assert (
        own.bodies[-1]["messages"][1]["content"].startswith(own.bodies[0]["messages"][0]["content"]) is False
    )
    assert len(own.bodies[-1]["messages"]) == 3  # what a stop left is a turn


def test_errors_are_told_and_nothing_is_lost(reader: Read, served: Served) -> None:
    own = reader(served, expected=("400",))
    own.set(max_tokens=8, form="regex")
    own.page.locator("#form-text").fill("(")
    own.ask("a question")
    problem = own.page.get_by_role("alert")
    expect(problem).to_contain_text("structured_outputs.regex")
    expect(own.page.locator("#turns li")).to_have_count(0)
    expect(own.page.locator("#question")).to_have_value("a question")
    own.set(form="")
    own.page.locator("#question").press("Enter")
    own.wait_for_answers(1)
    expect(problem).to_be_hidden()
    assert [m["content"] for m in own.bodies[-1]["messages"]] == ["a question"]
    own.set(temperature=7)
    own.ask("another")
    expect(problem).to_contain_text("Temperature")  # not sent
    assert len(own.bodies) == 2


def test_a_server_that_is_gone(reader: Read, engine: Engine) -> None:
    with serving(engine, Settings("tiny")) as served:
        own = reader(served, expected=("ERR_CONNECTION_REFUSED", "ERR_"))
        expect(own.page.locator("#served")).to_contain_text("tiny")
    own.ask("hello?")
    expect(own.page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(own.page.locator("#question")).to_have_value("hello?")


def test_an_error_in_the_middle(reader: Read, served: Served) -> None:
    own = reader(served)
    token = {"token_id": 1, "text": "half", "origin": "plain", "round": 0}
    chunk = {"choices": [{"index": 0, "delta": {"content": "half"}, "speculation": [token]}]}
    fault = {"type": "error", "error": {"message": "NaN in the logits"}}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in (chunk, fault)) + "data: [DONE]\n\n"
    own.page.route("**/v1/chat/completions", lambda r: r.fulfill(body=body, content_type="text/event-stream"))
    own.ask("x")
    expect(own.page.get_by_role("alert")).to_have_text("NaN in the logits")
    own.wait_for_answers(1)
    expect(own.page.locator(".answer")).to_have_text("half")
    assert own.legend()["plain"] == own.number("#total") == 1


def test_markup_of_a_model_is_text(reader: Read, served: Served) -> None:
    own = reader(served)
    text = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>&amp;"
    token = {"token_id": 1, "text": text, "origin": "<b>", "round": 0}
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "speculation": [token]}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    own.page.route("**/v1/chat/completions", lambda r: r.fulfill(body=body, content_type="text/event-stream"))
    own.ask(text)
    own.wait_for_answers(1)
    assert (
        own.page.locator(".answer, .said").evaluate_all("all => all.map(own => own.textContent)")
        == [text] * 2
    )
    expect(own.page.locator("#turns img, #turns script, #turns b")).to_have_count(0)
    assert own.page.title() == "tiny · pearl_rt"


def test_a_key(reader: Read, engine: Engine) -> None:
    with serving(engine, Settings("tiny", api_key="sesame")) as served:
        own = reader(served, expected=("401",))
        key = own.page.get_by_label("API key")
        key.fill("wrong")
        key.press("Enter")
        expect(own.page.locator("#key-problem")).to_contain_text("not accepted")
        key.fill("sesame")
        key.press("Enter")
        expect(own.page.locator("#served")).to_contain_text("tiny")
        expect(own.page.locator("#why")).to_contain_text("Drafter")
        own.set(max_tokens=5)
        own.ask("x")
        own.wait_for_answers(1)
        own.page.reload()  # kept for the tab
        expect(own.page.locator("#served")).to_contain_text("tiny")
        assert own.page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


def test_a_model_without_a_template_goes_on(reader: Read, engine: Engine) -> None:
    with serving(engine, Settings("tiny")) as served:
        own = reader(served)
        expect(own.page.locator("#served")).to_contain_text("no chat template")
        own.set(max_tokens=12, temperature=0)
        expect(own.page.locator("#system")).to_be_hidden()
        for turn, text in enumerate(("once", " and then"), 1):
            own.ask(text)
            own.wait_for_answers(turn)
            assert sum(own.coloured().values()) == sum(own.legend().values()) == 12
        first, second = own.bodies
        assert first["prompt"] == "once" and second["prompt"].startswith("once")
        shown = own.page.locator(".answer").first.evaluate("own => own.textContent")
        assert second["prompt"] == f"once{shown} and then"


def test_a_form(reader: Read, served: Served) -> None:
    own = reader(served)
    own.set(max_tokens=80, strategy="sd", form="schema")
    schema = {"type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"]}
    own.page.locator("#form-text").fill(json.dumps({**schema, "additionalProperties": False}))
    own.ask("x")
    own.wait_for_answers(1)
    shown = own.page.locator(".answer").evaluate("own => own.textContent")
    assert json.loads(shown)["answer"] in ("yes", "no")
    assert own.legend()["forced"] > 4 and own.legend() == {**own.legend(), **own.coloured()}
    expect(own.page.locator(".token.end")).to_have_count(1)
