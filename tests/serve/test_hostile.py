"""Clients that would hold the server, or make it work for nothing: each is bounded, and others go on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.cli.commands import main
from pearl_rt.serve import connection, guard
from pearl_rt.serve.app import Settings
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import Number, parameters

COMPLETIONS = "/v1/completions"
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HUGE = "1" + "0" * 400


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    target, _ = Pair.make("half-right", max_position_embeddings=8192).save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, max_model_len=8192, num_threads=1) as built:
        yield built


@pytest.fixture
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine, Settings("tiny", ChatTemplate("{{ messages[0].content }}"))) as running:
        yield running


def connected(served: Served, data: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    made.sendall(data)
    return made


def rest_of(client: socket.socket, end: bytes = b"\0") -> bytes:
    """What it still gets, until the server has closed it, or up to an end."""
    got = b""
    try:
        while end not in got and (part := client.recv(65536)):
            got += part
    except ConnectionError:
        pass
    return got


def goes_on(served: Served) -> bool:
    status, _, _ = served.call("POST", COMPLETIONS, {"prompt": "a", "max_tokens": 2})
    return status == 200


def test_connections_without_a_request_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    answered = connected(served, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answered.recv(12) == b"HTTP/1.1 200"
    answered.sendall(b"GET /heal")  # a second request, on a connection that is kept
    for client in (connected(served), connected(served, b"GET /health HTTP/1.1\r\nX:"), answered):
        with client:
            rest_of(client)
    assert goes_on(served)


def test_of_too_many_connections_the_idle_ones_go(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 8)
    body = b'{"prompt": "a", "max_tokens": 3000, "ignore_eos": true, "stream": true}'
    busy = connected(served, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert busy.recv(12) == b"HTTP/1.1 200"
    silent = [connected(served) for _ in range(40)]
    assert goes_on(served)
    closed = [client for client in silent if client.settimeout(0.2) or _is_closed(client)]
    assert len(closed) >= 32 and silent[0] in closed
    assert b"[DONE]" in rest_of(busy, b"[DONE]")
    for client in (busy, *silent):
        client.close()


def _is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("key", [None, "right"], ids=["no-key-needed", "no-key"])
def test_a_body_ends_behind_an_answer_that_came_early(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3)
    with serving(engine, Settings("tiny", api_key=key, max_body=1000)) as served:
        early = HEAD + (
            b"Content-Length: 5000\r\n\r\n" if key is None else b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with connected(served, early) as client:
            got = client.recv(4096)
            assert got.startswith(b"HTTP/1.1 413" if key is None else b"HTTP/1.1 401")
            assert b"connection: close" in got.lower()
            deadline = time.monotonic() + 60
            with pytest.raises(OSError):
                while time.monotonic() < deadline:
                    client.sendall(b"1\r\n \r\n")
                    time.sleep(0.01)


def test_an_answer_that_came_early_can_be_read(engine: Engine) -> None:
    """Though the whole body was sent first: the connection is not reset."""
    with serving(engine, Settings("tiny", max_body=1000)) as served, connected(served) as client:
        client.sendall(HEAD + b"Content-Length: 300000\r\n\r\n" + b" " * 300000)
        assert b"body_too_large" in rest_of(client)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_does_not_hold_a_stop(engine: Engine, stream: bool) -> None:
    with serving(engine, Settings("tiny"), drain_seconds=0) as served:
        made = {"prompt": "a", "max_tokens": 1500, "n": 4, "temperature": 1, "logprobs": 20, "stream": stream}
        body = json.dumps(made | {"ignore_eos": True}).encode()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", served.port))
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        while engine.stats()["queue"]["running"] == 0:
            time.sleep(0.01)
        served.stop()
        client.close()


def test_answers_that_a_stop_cuts_short_say_so(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"prompt": "a", "max_tokens": 8000, "ignore_eos": True, "n": 8, "temperature": 1}
    told: list[Any] = []
    with serving(engine, Settings("tiny"), drain_seconds=0) as served:
        threads = [
            threading.Thread(
                target=lambda more=more: told.append(served.call("POST", COMPLETIONS, {**asked, **more}))
            )
            for more in ({}, {"stream": True})
        ]
        for thread in threads:
            thread.start()
        while engine.stats()["queue"]["running"] + engine.stats()["queue"]["waiting"] < 9:
            time.sleep(0.01)
        time.sleep(0.2)
        served.stop()
        for thread in threads:
            thread.join(60)
    whole = next(answer for status, _, answer in told if status == 503)
    assert whole["error"]["code"] == "unavailable"
    text = next(answer for status, _, answer in told if status == 200)
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and '"code":"unavailable"' in lines[-2]
    assert "Traceback" not in caplog.text


def test_clients_that_leave_in_their_bodies_leave_no_traceback(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        with connected(served, HEAD + b'Content-Length: 1000\r\n\r\n{"pro'):
            pass
    assert goes_on(served)
    assert "Traceback" not in caplog.text and not caplog.records


NUMBERS = [row.name for row in parameters(SamplingParams) if isinstance(row.rule, Number)]


@pytest.mark.parametrize("name", [*NUMBERS, "logit_bias", "seed", "max_tokens", "n", "top_k", "stop"])
def test_huge_numbers_are_the_clients_fault(served: Served, name: str) -> None:
    value = f'{{"5": {HUGE}}}' if name == "logit_bias" else HUGE
    status, _, told = served.call("POST", COMPLETIONS, f'{{"prompt": "a", "{name}": {value}}}')
    if name == "max_tokens":
        assert status == 200  # as many as fit
    else:
        assert status == 400 and len(told["error"]["message"]) < 2100


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":"a","\\ud800":1}',
        b'{"prompt":"a","model":"\\ud800"}',
        b'{"prompt":"a","stop":{"a":1}}',
        b'{"prompt":"a","stop":5}',
        b'{"prompt":[["text"]]}',
        b'{"prompt":[[[1]]]}',
        b'{"prompt":[1, true]}',
        b'{"prompt":[1.5]}',
        b'{"prompt":"a","metadata":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"prompt":"a","metadata":' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}",
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"a","logit_bias":{"\\ud800":1}}',
        b'{"prompt":"a","logit_bias":{"1_0":1}}',
        b'{"prompt":"a","logit_bias":{" 5":1}}',
        b'{"prompt":"a","logit_bias":{"5":1,"05":2}}',
        b'{"prompt":"a","metadata":{"a":1e999}}',
        b'{"prompt":"a","x":"' + b"y" * 100000 + b'"}',
        b'{"prompt":"a","stop":["' + b"y" * 100000 + b'"]}',
        b'{"prompt":"a","max_tokens":5000,"n":64,"temperature":1,"logprobs":20}',
        b'{"prompt":"a","max_tokens":null,"n":8,"temperature":1,"logprobs":20,"max_tokens":8000}',
    ],
    ids=lambda body: body[:50].decode(),
)
def test_bodies_that_would_cost_are_refused(served: Served, body: bytes) -> None:
    status, _, told = served.call("POST", COMPLETIONS, body)
    assert status == (404 if b"model" in body else 400)
    assert told["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert len(json.dumps(told)) < 3000
    assert goes_on(served)


@pytest.mark.parametrize(
    "bytes_sent",
    [b"no HTTP\r\n\r\n", HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
     HEAD + b"Host: b\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
    ids=["words", "two lengths", "two hosts", "no chunk"],
)  # fmt: skip
def test_what_is_no_http_has_an_answer_of_the_same_shape(served: Served, bytes_sent: bytes) -> None:
    with connected(served, bytes_sent) as client:
        head, _, body = rest_of(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "invalid_http"
    assert goes_on(served)


@pytest.mark.parametrize("role", ["user", "system", "tool", "function"])
@pytest.mark.parametrize("calls", [5, [5], [{"function": {}}], {"a": 1}], ids=str)
def test_calls_of_others_than_an_assistant(served: Served, role: str, calls: Any) -> None:
    """None and an empty array are none; clients send them along."""
    for given, status in ((calls, 400), (None, 200), ([], 200)):
        message = {"role": role, "content": "a", "tool_calls": given, "tool_call_id": "1"}
        call = {"id": "1", "function": {"name": "f"}}
        before = [{"role": "assistant", "content": "b", "tool_calls": [call]}] if role == "tool" else []
        body = {"messages": [*before, message], "max_tokens": 1}
        found, _, told = served.call("POST", "/v1/chat/completions", body)
        assert found == status
        if status == 400:
            assert told["error"]["param"] == f"messages[{len(before)}].tool_calls"


def test_ids_to_be_repeated_are_counted_before_they_are_decoded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is decoded, and what is long to parse, is so in a thread: the loop of events goes on."""
    decoded, threads = [], []
    decode, parsed = Tokenizer.decode, guard._parsed
    monkeypatch.setattr(
        Tokenizer,
        "decode",
        lambda self, ids, **more: (
            decoded.append((len(ids), threading.get_ident())) or decode(self, ids, **more)
        ),
    )
    monkeypatch.setattr(guard, "_parsed", lambda body: threads.append(threading.get_ident()) or parsed(body))
    body = {"prompt": [5] * 100_000, "echo": True, "max_tokens": 1}
    status, _, told = served.call("POST", COMPLETIONS, body)
    assert (status, told["error"]["code"], decoded) == (400, "context_length_exceeded", [])
    assert served.call("POST", COMPLETIONS, {**body, "prompt": [5] * 5})[0] == 200
    of_loop, of_long = threads[1], threads[0]
    assert of_long != of_loop and decoded[0][0] == 5 and decoded[0][1] != of_loop


def test_bodies_may_be_deep_and_wide(served: Served) -> None:
    """Not deeper than any reader follows."""
    for metadata in ([[[1]] * 5000, json.loads("[" * 100 + "]" * 100)], {"a": {}}):
        body = {"prompt": "a", "max_tokens": 1, "metadata": metadata}
        assert served.call("POST", COMPLETIONS, body)[0] == 200


@pytest.mark.parametrize("name", ["self", "messages", "tools", "add_generation_prompt", "", "a b"])
def test_template_variables_of_any_name(served: Served, name: str) -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 1,
        "chat_template_kwargs": {name: 1},
    }
    status, _, _ = served.call("POST", "/v1/chat/completions", body)
    assert status == (400 if name in ("self", "messages", "tools", "add_generation_prompt") else 200)


def test_a_long_text_is_refused_before_it_is_encoded(
    served: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer,
        "encode",
        lambda self, text, **more: encoded.append(len(text)) or encode(self, text, **more),
    )
    text = "ab " * 10**6
    for path, fields in (
        (COMPLETIONS, {"prompt": text}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        status, _, told = served.call("POST", path, fields)
        assert (status, told["error"]["code"]) == (400, "context_length_exceeded")
    assert not encoded and engine.tokenizer is not None
    engine.tokenizer.check_length("a" * 8192, 8192)


@pytest.mark.parametrize(
    "host", ["[::1]evil.example", "localhost:80@evil.example", "localhost:x", "", "@", "a/b"]
)
def test_names_that_only_begin_like_this_machine_are_refused(served: Served, host: str) -> None:
    with connected(
        served, f"GET /v1/models HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\n\r\n".encode()
    ) as c:
        assert rest_of(c)[9:12] in (b"403", b"400")


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:8000"])
def test_names_of_this_machine_are_taken(served: Served, name: str) -> None:
    with connected(
        served, f"GET /v1/models HTTP/1.1\r\nConnection: close\r\nHost: {name}\r\n\r\n".encode()
    ) as c:
        assert rest_of(c)[9:12] == b"200"


@pytest.mark.parametrize("key", ["s\u00e9same", " padded ", "\u00fc\u20ac"])
def test_keys_of_any_letters(engine: Engine, key: str) -> None:
    with serving(engine, Settings("tiny", api_key=key)) as served:
        for sent, status in ((key, b"200"), (key[:-1] + "x", b"401")):
            head = "GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: y\r\n"
            head += f"Authorization: Bearer {sent}\r\n\r\n"
            with connected(served, head.encode()) as client:
                assert rest_of(client)[9:12] == status or key == " padded "


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "99999"], "port 99999 is out of range: pass 1 to 65535, or 0"),
        (["--port", "65536"], "port 65536 is out of range"),
        (["--port", "-1"], "port -1 is out of range"),
        (["--max-body", "0"], "--max-body 0 is out of range"),
        (["--drain-seconds", "-1"], "--drain-seconds -1 is out of range"),
        (["--keep-alive", "-5"], "--keep-alive -5 is out of range"),
    ],
    ids=str,
)
def test_flags_out_of_range(
    tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, _ = Pair.make("equal").save(tmp_path)
    assert main(["serve", "--target", str(target), *flags]) == 2
    assert said in capsys.readouterr().err
