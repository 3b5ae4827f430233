"""`speculative.report`: each token with its text and how it came, whole and streamed; sums that agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.serve.app import Settings
from pearl_rt.serve.speculation.report import finite
from pearl_rt.types.metrics import measure
from pearl_rt.types.outputs import RequestOutput, StreamChunk
from pearl_rt.types.rounds import ORIGINS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASKED = {"model": "tiny", "prompt": "hé", "temperature": 0, "max_tokens": 41, "ignore_eos": True}
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
PROGRAMS = [("ar", None), ("sd", 1), ("sd", 4), ("pearl", 1), ("pearl", 4)]


def pair_engine(directory: Any, draft: str, **options: Any) -> Engine:
    target, drafts = Pair.make(draft, eos_token_ids=(256,)).save(directory)
    return Engine.from_pretrained(target, drafts, device="cpu", max_model_len=1024, **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    template = ChatTemplate("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    with (
        pair_engine(tmp_path_factory.mktemp("pair"), "half-right", max_num_seqs=4) as engine,
        serving(engine, Settings("tiny", template)) as running,
    ):
        yield running


def streamed(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All events."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=60)
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    connection.request("POST", path, json.dumps(asked), {"content-type": "application/json"})
    text = connection.getresponse().read().decode()
    connection.close()
    events = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert events.pop() == "[DONE]", text
    return [json.loads(event, parse_constant=lambda name: pytest.fail(name)) for event in events]


def tokens_of(events: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    told = [c for event in events for c in event["choices"] if c["index"] == index]
    return [token for choice in told for token in choice.get("speculation", ())]


def how(strategy: str, gamma: int | None, **more: Any) -> dict[str, Any]:
    return {"strategy": strategy, **({} if gamma is None else {"gamma": gamma}), "report": True, **more}


@pytest.mark.parametrize(("strategy", "gamma"), PROGRAMS)
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_origins_add_up(served: Served, strategy: str, gamma: int | None, temperature: float) -> None:
    asked = {**ASKED, "temperature": temperature, "seed": 7, "speculative": how(strategy, gamma)}
    events = streamed(served, COMPLETIONS, asked)
    tokens, usage = tokens_of(events), events[-1]["usage"]
    figures = usage["speculation"]
    came = Counter(token["origin"] for token in tokens)
    assert len(tokens) == usage["completion_tokens"] == 41
    assert figures["origins"] == {kind: came[kind] for kind in ORIGINS}
    assert "".join(token["text"] for token in tokens) == "".join(
        choice["text"] for event in events for choice in event["choices"]
    )
    # The rule, told from the rounds that the tokens name: drafts first, then at most one token of the target.
    rounds = [[t["origin"] for t in own] for _, own in groupby(tokens, lambda token: token["round"])]
    assert [token["round"] for token in tokens] == sorted(token["round"] for token in tokens)
    assert rounds[0] == ["plain"] and tokens[0]["round"] == 0
    assert len(rounds) == figures["rounds"] + 1 == tokens[-1]["round"] + 1
    for own in rounds[1:]:
        assert set(own[:-1]) <= {"accepted"}, own
    longest = max(map(len, rounds))
    if strategy == "ar":
        assert came == {"plain": 41} and figures["judged_at"] == [] and figures["acceptance_rate"] is None
    else:
        assert longest <= gamma + 1 and came["accepted"] > 0 and came["recovered"] > 0 and came["plain"] == 1
        assert came["bonus"] == 0 or strategy == "sd"
        cut = figures["accepted"] - came["accepted"]  # behind the limit: verified, and not shown
        assert 0 <= cut <= gamma
        assert sum(figures["accepted_at"]) == figures["accepted"]
        assert sum(figures["judged_at"]) == figures["judged"]
        rejected = figures["judged"] - figures["accepted"]
        assert came["recovered"] in (rejected, rejected - 1)
    assert figures["tokens_per_round"] == pytest.approx(40 / figures["rounds"])
    assert (figures["strategy"], figures["gamma"]) == (strategy, gamma or 0)


def test_all_drafts_stand_where_the_draft_is_the_target(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        pair_engine(tmp_path_factory.mktemp("pair"), "equal") as engine,
        serving(engine, Settings("tiny")) as served,
    ):
        for strategy, kinds in (("sd", {"plain": 1, "accepted": 32, "bonus": 8}), ("pearl", None)):
            events = streamed(served, COMPLETIONS, {**ASKED, "speculative": how(strategy, 4)})
            came = Counter(token["origin"] for token in tokens_of(events))
            assert came == (kinds or {"plain": 1, "accepted": 40})
            assert events[-1]["usage"]["speculation"]["acceptance_rate"] == 1


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_whole_answer_says_what_a_stream_says(served: Served, path: str) -> None:
    said = {"prompt": "x"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    body = {"model": "tiny", **said, "temperature": 0, "max_tokens": 30, "speculative": how("sd", 3)}
    whole = served.call("POST", path, body)[2]
    events = streamed(served, path, body)
    [choice] = whole["choices"]
    assert choice["speculation"] == tokens_of(events)
    assert len(choice["speculation"]) == whole["usage"]["completion_tokens"] == 30
    # What depends on the clock: the placement is the one that was faster.
    timed = (
        "queue_seconds",
        "first_token_seconds",
        "tokens_per_second",
        "plain_tokens_per_second",
        "placement",
    )
    told, again = (
        {name: value for name, value in answer["usage"]["speculation"].items() if name not in timed}
        for answer in (whole, events[-1])
    )
    assert told == again


def test_several_answers_are_summed(served: Served) -> None:
    body = {
        **ASKED,
        "prompt": ["ab", "cd"],
        "n": 2,
        "temperature": 0.8,
        "speculative": how("sd", 3, trace=True),
    }
    events = streamed(served, COMPLETIONS, body)
    usage = events[-1]["usage"]
    each = [tokens_of(events, index) for index in range(4)]
    assert [len(own) for own in each] == [41] * 4
    assert sum(usage["speculation"]["origins"].values()) == usage["completion_tokens"] == 164
    assert "trace" not in usage["speculation"] and "strategy" not in usage["speculation"]


@pytest.mark.parametrize(("strategy", "gamma"), [("sd", 4), ("pearl", 3), ("ar", None)])
def test_what_a_form_forces(served: Served, strategy: str, gamma: int | None) -> None:
    body = {
        **ASKED,
        "max_tokens": 60,
        "ignore_eos": False,
        "guided_json": PERSON,
        "speculative": how(strategy, gamma),
    }
    events = streamed(served, COMPLETIONS, body)
    tokens = tokens_of(events)
    text = "".join(token["text"] for token in tokens)
    assert json.loads(text)["name"] in ("Ann", "Bob")
    assert len(tokens) == events[-1]["usage"]["completion_tokens"]
    forced = [place for place, token in enumerate(tokens) if token["origin"] == "forced"]
    if strategy == "ar":
        assert not forced  # nothing is drafted, so nothing is drafted for nothing
        return
    assert len(forced) > 15
    choices = [text.index(word) for word in ("Ann", "Bob", "true", "false") if word in text]
    assert not set(choices) & set(forced)  # where the form leaves a choice, a model made it
    name = text.index("name")
    assert {tokens[place]["origin"] for place in range(name, name + 4)} <= {"forced", "bonus"}


def test_by_lookup(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its drafts are certain too, and are no form's; beside a form both kinds are there."""
    target, _ = Pair.make("half-right", eos_token_ids=(256,)).save(tmp_path_factory.mktemp("pair"))
    with (
        Engine.from_pretrained(target, draft="lookup", device="cpu", max_model_len=1024) as engine,
        serving(engine, Settings("tiny")) as served,
    ):
        body = {**ASKED, "prompt": "abcabcabcabc", "max_tokens": 60, "speculative": how("sd", 6)}
        for temperature in (0, 1.0):
            events = streamed(served, COMPLETIONS, {**body, "temperature": temperature})
            came = Counter(token["origin"] for token in tokens_of(events))
            assert came.total() == 60 and came["forced"] == 0
        events = streamed(served, COMPLETIONS, {**body, "ignore_eos": False, "guided_json": PERSON})
        assert Counter(token["origin"] for token in tokens_of(events))["forced"] > 15


def test_tokens_without_text_are_told(served: Served) -> None:
    """The end of text, and bytes that are no character: their tokens count, with the text that they add."""
    body = {
        **ASKED,
        "ignore_eos": False,
        "max_tokens": 200,
        "temperature": 1.5,
        "seed": 3,
        "speculative": how("sd", 2),
    }
    events = streamed(served, COMPLETIONS, body | {"stop": None, "logit_bias": {"256": 6.0}})
    tokens = tokens_of(events)
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert tokens[-1] == {**tokens[-1], "token_id": 256, "text": ""}
    assert len(tokens) == events[-1]["usage"]["completion_tokens"] < 200


def test_a_trace_of_one_answer(served: Served) -> None:
    body = {**ASKED, "speculative": how("pearl", 3, trace=True)}
    figures = streamed(served, COMPLETIONS, body)[-1]["usage"]["speculation"]
    rows = figures["trace"]["rows"]
    assert {row[0] for row in rows} == {"draft", "target"} and figures["trace"]["num_left_out"] == 0
    assert {"score", "verify"} <= {row[1].split()[0] for row in rows if row[0] == "target"}
    assert all(0 <= begin <= end for _, _, _, begin, end in rows)
    assert max(row[2] for row in rows) >= figures["rounds"]
    assert figures["plain_tokens_per_second"] > 0 and figures["tokens_per_second"] > 0


def test_nothing_is_told_unless_it_is_asked_for(served: Served) -> None:
    whole = served.call("POST", COMPLETIONS, ASKED)[2]
    assert "speculation" not in whole["choices"][0] and "speculation" not in whole["usage"]
    events = streamed(served, COMPLETIONS, {**ASKED, "speculative": {"strategy": "sd"}})
    assert all("speculation" not in choice for event in events for choice in event["choices"])
    assert "speculation" not in events[-1]["usage"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (COMPLETIONS, {**ASKED, "speculative": {"report": 1}}, "must be true or false"),
        (COMPLETIONS, {**ASKED, "speculative": {"trace": True}}, "pass report true too"),
        (
            COMPLETIONS,
            {**ASKED, "echo": True, "max_tokens": 0, "speculative": {"report": True}},
            "max_tokens 1",
        ),
        ("/v1/responses", {"input": "x", "speculative": {"report": True}}, "chats and completions"),
    ],
    ids=["kind", "trace", "no tokens", "responses"],
)
def test_what_cannot_be_told(served: Served, path: str, body: dict[str, Any], said: str) -> None:
    status, _, told = served.call("POST", path, body)
    assert status == 400 and said in told["error"]["message"]


def test_chunks_of_a_cancelled_answer_have_origins(served: Served) -> None:
    handle = served.engine.submit("x", SamplingParams(max_tokens=900, ignore_eos=True))
    chunks = []
    for chunk in handle:
        chunks.append(chunk)
        handle.cancel()
    assert chunks[-1].finish_reason == "abort"
    assert all(len(chunk.origins) == len(chunk.token_ids) for chunk in chunks)
    output = handle.result(30)
    assert [one for chunk in chunks for one in chunk.origins] == list(output.metrics.origins)
    assert len(output.token_ids) == len(output.metrics.origins)


def test_the_last_chunk_has_the_origins_that_no_other_had() -> None:
    shape = {"pending_before": 0, "forced": (), "certain": (), "num_cached_tokens": -1, "t_ns": 0}
    shape |= {"is_refused": False}
    rounds = [
        SimpleNamespace(token_ids=[1], accept_len=0, num_judged=0, **shape),
        SimpleNamespace(token_ids=[2, 3], accept_len=1, num_judged=3, **shape),
    ]
    figures = measure(rounds, start_ns=0, num_prompt_tokens=1, strategy="sd", gamma=3, placement="shared")
    handle = RequestHandle(0, lambda _: None, lambda: None)
    handle.push(StreamChunk([1], "a", None, None, figures.origins[:1]))
    handle.finish(RequestOutput(None, [7], [1, 2, 3], "abc", "abort", figures))
    first, last = handle
    assert (last.token_ids, last.text) == ([2, 3], "bc")
    assert [origin.kind for origin in last.origins] == ["accepted", "recovered"]
    assert [origin.kind for origin in first.origins] == ["plain"]


def test_stats_are_json(served: Served) -> None:
    status, _, stats = served.call("GET", "/stats")
    assert status == 200 and stats["drafter"]["kind"] == "model"
    own = json.loads(json.dumps(finite(served.engine.stats()), allow_nan=False))
    assert stats["candidates"] == own["candidates"] and stats["step_times"] == own["step_times"]
    assert stats["step_times"]["shared"]["is_measured"] is True
    assert finite({1: [float("nan"), (1.5, "x")], "y": float("inf")}) == {"1": [None, [1.5, "x"]], "y": None}
