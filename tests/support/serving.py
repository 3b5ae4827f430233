"""A server on loopback in a thread of its own, and clients for it."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from pearl_rt import Engine
from pearl_rt.serve.app import Settings, build_app
from pearl_rt.serve.server import Server, allowed_hosts, bound_socket


@dataclass
class Served:
    """Where it listens, and how to stop it."""

    engine: Engine
    port: int
    server: Server
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body), by http.client: bodies that are no text are sent as JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"content-type": "application/json", **(headers or {})}
        data = body if isinstance(body, (str, bytes)) or body is None else json.dumps(body)
        try:
            connection.request(method, path, data, given)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        content: Any = text
        with suppress(ValueError):
            content = json.loads(text)
        return response.status, {k.lower(): v for k, v in response.getheaders()}, content


@contextmanager
def serving(
    engine: Engine, settings: Settings, drain_seconds: int | None = 10, **options: Any
) -> Iterator[Served]:
    """The engine is the caller's. options: those of Server."""
    listening = threading.Event()
    bound: socket.socket = bound_socket("127.0.0.1", 0)
    if settings.hosts is None and settings.api_key is None:
        settings = Settings(**{**vars(settings), "hosts": allowed_hosts("127.0.0.1", None)})
    server = Server(
        build_app(engine, settings), drain_seconds=drain_seconds, on_listening=listening.set, **options
    )
    thread = threading.Thread(target=server.serve_until_stopped, args=(bound,))
    thread.start()
    assert listening.wait(30)
    served = Served(engine, bound.getsockname()[1], server, thread)
    try:
        yield served
    finally:
        served.stop()
        bound.close()
