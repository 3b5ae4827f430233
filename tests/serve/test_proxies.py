"""A server behind a proxy: whose headers it believes, its path, and how long it keeps connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine
from pearl_rt.cli.commands import main, parser
from pearl_rt.serve.app import Settings
from pearl_rt.serve.server import DRAIN_SECONDS, KEEP_ALIVE_SECONDS, Server, check_proxies

FORWARDED = {"x-forwarded-for": "203.0.113.7, 10.1.2.3", "x-forwarded-proto": "https", "host": "localhost"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    target, _ = Pair.make("equal").save(tmp_path_factory.mktemp("pair"))
    with Engine.from_pretrained(target, "none", device="cpu", max_model_len=64, num_threads=1) as made:
        yield made


def redirected(served: Served, **headers: str) -> str:
    """Where /health/ is, as the server sees itself from outside."""
    status, found, _ = served.call("GET", "/health/", headers=headers)
    assert status == 307
    return found["location"]


@pytest.mark.parametrize(
    ("proxies", "scheme"),
    [([], "http"), (["127.0.0.1"], "https"), (["127.0.0.0/8", "::1"], "https"), (["10.0.0.0/8"], "http")],
    ids=str,
)
def test_headers_of_proxies_that_are_named_are_believed(
    engine: Engine, proxies: list[str], scheme: str
) -> None:
    with serving(engine, Settings("m"), proxies=proxies) as served:
        assert redirected(served, **FORWARDED) == f"{scheme}://localhost/health"
        assert redirected(served, host="localhost") == "http://localhost/health"


@pytest.mark.parametrize(
    ("proxies", "client"),
    [(["127.0.0.1"], "10.1.2.3"), (["127.0.0.1", "10.0.0.0/8"], "203.0.113.7"), ([], "127.0.0.1")],
    ids=str,
)
def test_the_client_is_the_last_address_that_is_no_proxy(proxies: list[str], client: str) -> None:
    seen: list[object] = []

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        seen.append(scope["client"])

    made = Server(app, proxies=proxies)  # type: ignore[arg-type]
    made.config.load()
    headers = [(name.encode(), value.encode()) for name, value in FORWARDED.items()]
    scope = {"type": "http", "client": ("127.0.0.1", 5), "headers": headers, "scheme": "http"}
    asyncio.run(made.config.loaded_app(scope, None, None))  # type: ignore[arg-type]
    assert seen[0][0] == client  # type: ignore[index]


def test_a_path_that_a_proxy_takes_away(engine: Engine) -> None:
    """The endpoints stay where they are, /health needs no key there, and redirects name the whole path."""
    with serving(engine, Settings("m", api_key="k"), root_path="/models/a") as served:
        assert served.call("GET", "/health")[0] == 200
        with_key = {"host": "localhost", "authorization": "Bearer k"}
        assert redirected(served, **with_key) == "http://localhost/models/a/health"
        assert served.call("GET", "/v1/models")[0] == 401
        assert served.call("GET", "/v1/models", headers={"authorization": "Bearer k"})[0] == 200
        body = {"prompt": "a", "max_tokens": 2}
        assert served.call("POST", "/v1/completions", body, {"authorization": "Bearer k"})[0] == 200


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--proxy-headers", "nginx"], "--proxy-headers 'nginx' is no address and no network"),
        (["--proxy-headers", "10.0.0.1/8"], "'10.0.0.1/8' is no address and no network"),
        (["--root-path", "a"], "--root-path 'a' must begin with /"),
        (["--root-path", "/a/"], "--root-path '/a/' must begin with / and not end with it"),
    ],
    ids=str,
)
def test_what_is_no_proxy_is_refused(
    tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, _ = Pair.make("equal").save(tmp_path)
    assert main(["serve", "--target", str(target), *flags]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigError):
        check_proxies(*(([flags[1]], "") if flags[0] == "--proxy-headers" else ([], flags[1])))


def test_an_idle_connection_is_kept_for_as_long_as_the_default_says(engine: Engine) -> None:
    """Longer than clients that pool connections keep theirs: 60 s and less."""
    options = parser().parse_args(["serve"])
    assert (options.keep_alive, options.drain_seconds) == (KEEP_ALIVE_SECONDS, DRAIN_SECONDS)
    assert KEEP_ALIVE_SECONDS >= 65
    with serving(engine, Settings("m")) as served:
        client = HTTPConnection("127.0.0.1", served.port, timeout=30)
        client.request("GET", "/health")
        began = time.monotonic()
        client.getresponse().read()
        [connection] = served.server.server_state.connections
        while (timer := connection.timeout_keep_alive_task) is None:  # type: ignore[union-attr]
            time.sleep(0.001)
        assert began + KEEP_ALIVE_SECONDS - 5 < timer.when() < time.monotonic() + KEEP_ALIVE_SECONDS + 5
        client.close()


def test_an_idle_connection_is_closed_behind_its_time(engine: Engine) -> None:
    with serving(engine, Settings("m"), keep_alive_seconds=1) as served:
        client = HTTPConnection("127.0.0.1", served.port, timeout=60)
        client.request("GET", "/health")
        client.getresponse().read()
        assert client.sock is not None and client.sock.recv(1) == b""  # its end
        client.close()
