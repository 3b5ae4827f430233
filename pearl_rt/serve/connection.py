"""One connection of a client: uvicorn's, with an end where the client sends nothing, or never reads.

Knows sockets and clocks; not what is asked.
"""

import asyncio
import json
import resource

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pearl_rt.serve.faults import error_body

HEADER_SECONDS = 10.0  # in which the head of a request must have come
READ_SECONDS = 120.0  # in which a client must read something of its answer
LINGER_SECONDS = 2.0  # for which a body is read, and dropped, behind an answer that came before its end


def backlog() -> int:
    """Connections that may wait to be accepted, all at once: a part of the descriptors that there may be."""
    return min(512, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 16))


def most_connections() -> int:
    """So many that descriptors are left for those that are accepted at once, and for our own files."""
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - backlog() - 64, 16)


class Connection(H11Protocol):
    """uvicorn's protocol for HTTP/1.1. Of too many the one that is idle the longest is closed."""

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0  # of the loop's clock

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio's hook."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self.transport = _Lingering(self, transport)  # type: ignore[assignment]
        self._wait_for_head()
        if len(self.connections) > (most := most_connections()):
            self._make_room(most)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's hook."""
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's hook. Behind an answer that came early the rest of the body is dropped."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.is_answering or self.timeout_keep_alive_task is not None:
            self._head_came()
        elif self._head_timer is None:
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's hook: what came is no HTTP. The answer has the shape of all others."""
        body = json.dumps(error_body(400, msg, code="invalid_http")).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers.append(("content-length", str(len(body))))
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        """uvicorn's hook."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """asyncio's hook: what was written has not been read."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """asyncio's hook."""
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()

    @property
    def is_answering(self) -> bool:
        """Whether a request is in flight."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_body_left(self) -> bool:
        """Whether the client is still sending what it asks with."""
        return self.conn.their_state is h11.SEND_BODY

    def _make_room(self, most: int) -> None:
        """Closes those that are idle the longest, until so many are left; this one, if all others are not."""
        left = [one for one in self.connections if isinstance(one, Connection) and not one.is_closing]
        idle = sorted((one for one in left if not one.is_answering), key=lambda one: one._idle_since)
        for one in idle[: max(len(left) - most, 0)]:
            one.transport.abort()

    @property
    def is_closing(self) -> bool:
        """Whether its end is only waited for."""
        return bool(self.transport.is_closing())

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Lingering:
    """A transport whose close() lets the client read the answer: while a body still comes, what is written is
    ended at once, and the connection a little later. Closed with data unread, it would take the answer along.
    """

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport
        self._is_closing = False

    def close(self) -> None:
        """Soon."""
        if self._is_closing or self._transport.is_closing():
            return
        if not self._connection.is_body_left:
            self._transport.close()
            return
        self._is_closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.loop.call_later(LINGER_SECONDS, self._transport.abort)

    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self._is_closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)
