"""One server process: an address that it may listen on, and a stop that lets answers finish.

Knows sockets and uvicorn; of the endpoints only that they are an application.
"""

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pearl_rt.errors import ConfigError, ResourceError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_S = 5


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, api_key: str | None) -> None:
    """Raises ConfigError if others could reach a server that asks for no key."""
    if api_key is None and not is_loopback(host):
        raise ConfigError(
            f"host {host} can be reached from other machines: set an API key (--api-key, or PEARL_API_KEY), "
            "or bind 127.0.0.1"
        )


def allowed_hosts(host: str, api_key: str | None) -> tuple[str, ...] | None:
    """Names by which a server without a key may be addressed; None: any."""
    return None if api_key is not None else (*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host.lower())


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 is any free one. Raises ResourceError if it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY for this protocol only: an answer on a kept connection would wait for the
        # client's delayed acknowledgement.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ResourceError(
            f"cannot listen at {host}:{port} ({error}): pass another --host or --port"
        ) from None
    return bound


class Server(uvicorn.Server):
    """uvicorn's, which says when it listens."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain_seconds: int | None = None,
        on_listening: Callable[[], None] = lambda: None,
    ) -> None:
        """drain_seconds: how long answers in flight may take once it stops; None: as long as they need."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=drain_seconds,
                lifespan="off",
            )
        )
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's hook."""
        await super().startup(sockets)
        self._on_listening()

    def serve_until_stopped(self, bound: socket.socket) -> None:
        """Blocks until SIGINT or SIGTERM (or should_exit), then takes no more and finishes what is in flight.

        A second signal cancels what is in flight.
        """
        with _quiet_signals():
            asyncio.run(self.serve(sockets=[bound]))


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises the signals that it caught again once it has stopped: they were heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in heard]
    try:
        yield
    finally:
        for number, handler in zip(heard, before, strict=True):
            signal.signal(number, handler)
