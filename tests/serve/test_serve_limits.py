"""What a server refuses, and what it does when clients go away, or when it is told to stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, SamplingParams
from pearl_rt.cli.commands import main
from pearl_rt.serve.app import Settings
from pearl_rt.serve.server import check_address, is_loopback

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 32768  # so that no answer ends by itself while a test looks away
ENDLESS = {"model": "tiny", "prompt": "a", "temperature": 0, "max_tokens": 32000, "ignore_eos": True}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = Pair.make("half-right", max_position_embeddings=LENGTH)
    return made.save(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def engine(pair: tuple[Path, Path]) -> Iterator[Engine]:
    with Engine.from_pretrained(*pair, max_model_len=LENGTH, max_waiting=2, max_num_seqs=1) as built:
        yield built


@pytest.fixture
def served(engine: Engine) -> Iterator[Served]:
    with serving(engine, Settings("tiny", max_body=2000)) as running:
        yield running


def until(condition: object, seconds: float = 60) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.005)
    return False


def opened(served: Served, body: dict, path: str = "/v1/completions") -> socket.socket:
    """A connection on which a request was sent and nothing read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def is_idle(engine: Engine) -> bool:
    return engine.stats()["queue"] == {"running": 0, "waiting": 0}


def finished(engine: Engine) -> int:
    return sum(engine.stats()["totals"]["finished"].values())


def aborted(engine: Engine) -> int:
    return engine.stats()["totals"]["finished"].get("abort", 0)


def test_bodies_that_are_no_json(served: Served) -> None:
    for body in ("", "{", '{"prompt": }', "[]", '"text"', b"\xff\xfe", "[" * 1000):
        status, _, told = served.call("POST", "/v1/completions", body)
        assert status == 400, body
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert told["error"]["type"] == "invalid_request_error" and told["error"]["code"]
    status, _, told = served.call("POST", "/v1/completions", "{}", {"content-type": "text/plain"})
    assert (status, told["error"]["code"]) == (415, "wrong_type")
    assert served.call("POST", "/v1/completions", {"model": "tiny", "prompt": "a"})[0] == 200


def test_bodies_that_are_too_large(served: Served) -> None:
    status, _, told = served.call("POST", "/v1/completions", {"prompt": "x" * 3000})
    assert status == 413
    assert "2000 bytes" in told["error"]["message"]
    connection = socket.create_connection(
        ("127.0.0.1", served.port), timeout=30
    )  # chunked: no length is told
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + 3 * (b"3e8\r\n" + b" " * 1000 + b"\r\n")
    )
    assert b"413" in connection.recv(4096).split(b"\r\n")[0]
    connection.close()


def test_paths_and_methods(served: Served) -> None:
    for method, path, expected in (("GET", "/v1/completions", 405), ("GET", "/nowhere", 404)):
        status, headers, told = served.call(method, path)
        assert status == expected
        assert told["error"]["code"] == ("method_not_allowed" if status == 405 else "not_found")
        assert headers.get("allow") == ("POST" if status == 405 else None)
    status, _, told = served.call(
        "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}
    )
    assert (status, told["error"]["code"]) == (400, "no_chat_template")


def test_a_page_under_another_name_is_refused(served: Served) -> None:
    for host, expected in (
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
    ):
        assert served.call("GET", "/v1/models", headers={"host": host})[0] == expected


def test_keys(engine: Engine) -> None:
    with serving(engine, Settings("tiny", api_key="sésame")) as served:
        assert served.call("GET", "/health")[0] == 200
        for header in (
            {},
            {"authorization": "Bearer "},
            {"authorization": "Bearer wrong"},
            {"authorization": "x"},
        ):
            for path in ("/v1/models", "/metrics", "/v1/completions"):
                status, _, told = served.call("GET", path, headers=header)
                assert (status, told["error"]["code"]) == (401, "invalid_api_key")
        with (
            openai.OpenAI(base_url=served.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="key is missing or wrong"),
        ):
            client.models.list()


def test_the_right_key(engine: Engine) -> None:
    with (
        serving(engine, Settings("tiny", api_key="sesame")) as served,
        openai.OpenAI(base_url=served.url, api_key="sesame", max_retries=0) as client,
    ):
        assert client.completions.create(model="tiny", prompt="a").choices[0].finish_reason == "length"
        assert (
            served.call("GET", "/v1/models", headers={"authorization": "bearer sesame", "host": "any"})[0]
            == 200
        )


@pytest.mark.parametrize("stream", (False, True), ids=("whole", "streamed"))
def test_a_client_that_goes_away_cancels_its_request(served: Served, engine: Engine, stream: bool) -> None:
    body = {**ENDLESS, "stream": stream}
    for _ in range(3):
        before = aborted(engine)
        connection = opened(served, body)
        if stream:
            assert connection.recv(1)
        assert until(lambda: engine.stats()["queue"]["running"] == 1)  # one that waits ends uncounted
        connection.close()
        assert until(lambda: is_idle(engine))
        assert aborted(engine) == before + 1
    assert served.call("POST", "/v1/completions", {"prompt": "a", "max_tokens": 3})[0] == 200


def test_a_client_that_waits_and_goes_away_never_runs(served: Served, engine: Engine) -> None:
    first = opened(served, ENDLESS)
    assert until(lambda: engine.stats()["queue"]["running"] == 1)
    second = opened(served, {**ENDLESS, "stream": True})
    assert until(lambda: engine.stats()["queue"]["waiting"] == 1)
    second.close()
    assert until(lambda: engine.stats()["queue"]["waiting"] == 0)
    first.close()
    assert until(lambda: is_idle(engine))
    assert aborted(engine) == 1  # the other one never ran


def test_a_full_queue_is_429(served: Served, engine: Engine) -> None:
    connections = [opened(served, {**ENDLESS, "stream": True}) for _ in range(3)]
    assert until(lambda: engine.stats()["queue"] == {"running": 1, "waiting": 2})
    status, headers, told = served.call("POST", "/v1/completions", {"prompt": "a"})
    assert (status, headers["retry-after"], told["error"]["code"]) == (429, "1", "rate_limit_exceeded")
    with (
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="max_waiting is 2"),
    ):
        client.completions.create(model="tiny", prompt="a", stream=True)
    assert served.call("GET", "/health")[0] == 200
    for connection in connections:
        connection.close()
    assert until(lambda: is_idle(engine))
    many = {"prompt": "a", "n": 4, "temperature": 1}  # of which three fit: none is left behind
    assert served.call("POST", "/v1/completions", many)[0] == 429
    assert until(lambda: is_idle(engine))
    assert served.call("POST", "/v1/completions", {**many, "n": 3})[0] == 200


def test_a_stop_finishes_what_is_in_flight(pair: tuple[Path, Path]) -> None:
    params = SamplingParams(max_tokens=600, ignore_eos=True)
    with Engine.from_pretrained(*pair, max_model_len=LENGTH) as engine:
        expected = engine.generate("a", params)[0].text
        with serving(engine, Settings("tiny")) as served:
            asked = {**ENDLESS, "max_tokens": 600}
            connections = [opened(served, {**asked, "stream": stream}) for stream in (True, False)]
            assert connections[0].recv(1)
            assert until(lambda: sum(engine.stats()["queue"].values()) + finished(engine) == 3)
            served.server.should_exit = True
            answers = []
            for connection in connections:
                answer = b""
                while part := connection.recv(65536):
                    answer += part
                answers.append(answer.decode())
            served.stop()
            assert "[DONE]" in answers[0]
            events = re.findall(r"^data: (\{.*\})\r?$", answers[0], re.M)
            assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == expected
            body = answers[1].partition("\r\n\r\n")[2]
            assert json.loads(body)["choices"][0]["text"] == expected
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", served.port), timeout=1)


def test_a_stop_that_may_not_wait(pair: tuple[Path, Path]) -> None:
    with Engine.from_pretrained(*pair, max_model_len=LENGTH) as engine:
        with serving(engine, Settings("tiny"), drain_seconds=1) as served:
            slow = opened(served, {**ENDLESS, "n": 1, "stream": True, "prompt": ["a"] * 60})
            assert slow.recv(1)
            served.stop()  # within a minute, which the answers would take
        assert until(lambda: is_idle(engine))


def test_an_error_in_a_stream_is_an_event(tmp_path: Path) -> None:
    pair = Pair.make("equal")
    pair.target["model.embed_tokens.weight"][200] = float("nan")
    target, _ = pair.save(tmp_path)
    with (
        Engine.from_pretrained(target, max_model_len=64) as engine,
        serving(engine, Settings("tiny")) as served,
    ):
        asked = {"model": "tiny", "prompt": [1, 200, 2], "max_tokens": 4}
        status, _, told = served.call("POST", "/v1/completions", asked)
        assert status == 500 and "NaN" in told["error"]["message"]
        with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            with pytest.raises(openai.APIError, match="NaN"):
                list(client.completions.create(stream=True, **asked))
            assert client.completions.create(model="tiny", prompt=[5], max_tokens=2).choices[0].finish_reason


def test_addresses() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert is_loopback(host)
        check_address(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.com"):
        assert not is_loopback(host)
        check_address(host, "key")
        with pytest.raises(ConfigError, match="can be reached from other machines"):
            check_address(host, None)


def test_the_command_refuses_what_is_unsafe_before_it_loads(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--target", str(pair[0])]
    assert main([*arguments, "--host", "0.0.0.0"]) == 2
    assert "API key" in capsys.readouterr().err
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    assert main([*arguments, "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err
    taken.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_the_command_serves_and_stops(pair: tuple[Path, Path], number: int) -> None:
    command = [sys.executable, "-m", "pearl_rt", "serve", "--port", "0", "--model-name", "tiny"]
    command += ["--target", str(pair[0]), "--draft", str(pair[1]), "--max-model-len", str(LENGTH)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PEARL_API_KEY": "sesame"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while "Ctrl-C stops" not in said:
            said = process.stderr.readline()
            assert said, process.wait()
        url = re.search(r"(http://127\.0\.0\.1:\d+/v1)", said)
        assert url, said
        with openai.OpenAI(base_url=url[1], api_key="sesame", max_retries=0) as client:
            asked = {"model": "tiny", "prompt": "a", "temperature": 0, "max_tokens": 6_000}
            stream = client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
            first = next(iter(stream))
            process.send_signal(number)
            rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length", first
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        accepted = [
            each.transport.get_extra_info("socket") for each in served.server.server_state.connections
        ]
        assert [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in accepted] == [1]
