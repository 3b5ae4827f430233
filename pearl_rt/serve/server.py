"""One server process: an address that it may listen on, and a stop that lets answers finish.

Knows sockets and uvicorn; of the endpoints only that they are an application.
"""

import asyncio
import ipaddress
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from pearl_rt.errors import ConfigError, ResourceError
from pearl_rt.serve.connection import Connection, backlog
from pearl_rt.types.values import out_of_range

MAX_PORT = 65535
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_SECONDS = 75  # longer than clients that pool connections keep an idle one
DRAIN_SECONDS = 30
CUT_SECONDS = 2.0  # in which answers that were cut short must have told so


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


def allowed_hosts(host: str, api_key: str | None, others: Sequence[str] = ()) -> tuple[str, ...] | None:
    """Names by which a server without a key may be addressed; None: any. others: names of a proxy, or of a
    container's host.
    """
    if api_key is not None:
        return None
    own = f"[{host}]" if ":" in host else host.lower()
    return (*LOOPBACK_NAMES, own, *(name.lower() for name in others))


def check_proxies(addresses: Sequence[str], root_path: str = "") -> None:
    """Raises ConfigError for what is neither an address nor a network, and for what is no path."""
    for address in addresses:
        try:
            ipaddress.ip_network(address)
        except ValueError as error:
            raise ConfigError(
                f"--proxy-headers {address!r} is no address and no network ({error}): pass one as 127.0.0.1 "
                "or 10.0.0.0/8"
            ) from None
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise ConfigError(
            f"--root-path {root_path!r} must begin with / and not end with it: pass one as /models/a"
        )


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 is any free one. Raises ResourceError if it cannot be had, ConfigError
    for what is no port.
    """
    if not 0 <= port <= MAX_PORT:
        raise out_of_range("port", port, f"1 to {MAX_PORT}, or 0 for any that is free", ConfigError)
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
    """uvicorn's, which says when it listens, and answers what it cuts short."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain_seconds: float | None = DRAIN_SECONDS,
        keep_alive_seconds: int = KEEP_ALIVE_SECONDS,
        proxies: Sequence[str] = (),
        root_path: str = "",
        on_listening: Callable[[], None] = lambda: None,
    ) -> None:
        """drain_seconds: how long answers in flight may take once it stops; None: as long as they need.
        keep_alive_seconds: how long an idle connection is kept. proxies: addresses and networks whose
        X-Forwarded-For and X-Forwarded-Proto name the client's address and scheme. root_path: what a proxy
        takes from the front of each path.
        """
        check_proxies(proxies, root_path)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=keep_alive_seconds,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=list(proxies),
                root_path=root_path,
                lifespan="off",
                http=Connection,
                ws="none",
                backlog=backlog(),
            )
        )
        self._drain_seconds = drain_seconds
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's hook."""
        await super().startup(sockets)
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's hook: no more connections; what is in flight may finish, and is then cut short, each with
        an error as its answer. A client that does not read it is left.
        """
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        connections, tasks = self.server_state.connections, self.server_state.tasks
        for connection in list(connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        end = math.inf if self._drain_seconds is None else loop.time() + self._drain_seconds
        while (connections or tasks) and not self.force_exit and loop.time() < end:
            await asyncio.sleep(0.02)
        if cut := list(tasks):
            for task in cut:
                task.cancel()
            await asyncio.wait(cut, timeout=CUT_SECONDS)
        for connection in list(connections):
            if connection.transport.get_write_buffer_size():
                connection.transport.abort()
            else:
                connection.transport.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook: a second signal, of whichever kind, ends the wait for what is in flight."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    def serve_until_stopped(self, bound: socket.socket) -> None:
        """Blocks until SIGINT or SIGTERM (or should_exit), then takes no more and finishes what is in flight.

        A second signal cuts short what is in flight.
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
