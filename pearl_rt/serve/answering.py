"""Handles of one HTTP request, as one answer: merged into a stream of events, or waited for; cancelled if
the client has gone.

Knows handles and shapes; an ASGI receive() only to hear that the client has gone.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pearl_rt.errors import EngineClosedError
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.serve.faults import described
from pearl_rt.serve.shapes import Shape, usage_of
from pearl_rt.serve.speculation.report import Report
from pearl_rt.types.json import Json
from pearl_rt.types.outputs import RequestOutput, StreamChunk

_LINE_ENDS = "\x85\u2028\u2029"


@asynccontextmanager
async def watched(receive: Receive, handles: Sequence[RequestHandle]) -> AsyncIterator[None]:
    """Cancels the requests as soon as the client goes away, or the block is left early."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel_all(handles)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        cancel_all(handles)


def cancel_all(handles: Sequence[RequestHandle]) -> None:
    """Those that are done stay as they are."""
    for handle in handles:
        handle.cancel()


async def outputs_of(handles: Sequence[RequestHandle]) -> list[RequestOutput]:
    """All outputs, in order. Raises the first error."""
    return [await handle for handle in handles]


async def merged(handles: Sequence[RequestHandle]) -> AsyncGenerator[tuple[int, StreamChunk], None]:
    """(index, chunk) of all handles, each as soon as it is there. Raises the first error."""
    queue: asyncio.Queue[tuple[int, StreamChunk | Exception | None]] = asyncio.Queue()

    async def read(index: int) -> None:
        try:
            async for chunk in handles[index]:
                queue.put_nowait((index, chunk))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))

    readers = [asyncio.create_task(read(index)) for index in range(len(handles))]
    try:
        left = len(handles)
        while left:
            index, found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield index, found
    finally:
        for reader in readers:
            reader.cancel()


class EventStream(Response):
    """Server-sent events: the chunks of all answers, usage if asked for, and [DONE]; or named events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        handles: Sequence[RequestHandle],
        shape: Shape,
        *,
        has_usage: bool,
        num_answers: int,
        prompt_lengths: Sequence[int] | None = None,
        report: Report | None = None,
    ) -> None:
        """prompt_lengths: of each answer's prompt, if every chunk has the usage of its answer so far. report:
        chunks tell how their tokens came, and usage what drafts were worth.
        """
        # The second is for proxies of nginx, which would keep events back until there are many.
        super().__init__(b"", headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._handles = handles
        self._shape = shape
        self._has_usage = has_usage
        self._num_answers = num_answers
        self._prompt_lengths = prompt_lengths
        self._report = report
        self._counts = [0] * len(handles)  # tokens of each answer so far

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. An error behind the first byte is an event of its own."""
        async with watched(receive, self._handles):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            try:
                async with aclosing(self._events()) as events:
                    async for event in events:
                        await send(
                            {"type": "http.response.body", "body": self._line(event), "more_body": True}
                        )
            except OSError:  # the client has gone
                return
            except (Exception, asyncio.CancelledError) as error:  # the latter: the server stops
                told = error if isinstance(error, Exception) else EngineClosedError()
                failure = self._line({"type": "error", **described(told)[1]})
                await send({"type": "http.response.body", "body": failure, "more_body": True})
            end = b"" if self._shape.names_events else b"data: [DONE]\n\n"
            with suppress(OSError):
                await send({"type": "http.response.body", "body": end})

    async def _events(self) -> AsyncGenerator[Json, None]:
        blank = {"usage": None} if self._has_usage else {}
        for index in range(len(self._handles)):
            for opening in self._shape.opening(index):
                yield opening | blank
        async with aclosing(merged(self._handles)) as chunks:
            async for index, chunk in chunks:
                self._counts[index] += len(chunk.token_ids)
                if self._report is not None:
                    self._report.add(index, chunk)
                if not (chunk.text or chunk.finish_reason or chunk.logprobs):
                    continue  # half a character
                stop_reason = None
                if chunk.finish_reason is not None:
                    stop_reason = (await self._handles[index]).stop_reason
                events = self._shape.chunk(index, chunk, stop_reason)
                if self._report is not None and events:
                    events[0]["choices"][0]["speculation"] = self._report.taken(index)
                for event in events:
                    yield event | blank | self._usage_so_far(index)
        if self._has_usage:
            outputs = await outputs_of(self._handles)
            closing = self._shape.closing(outputs, self._num_answers)
            if self._report is not None:
                closing["usage"]["speculation"] = self._report.figures(outputs)
            yield closing

    def _line(self, content: Json) -> bytes:
        name = f"event: {content['type']}\n".encode() if self._shape.names_events else b""
        return name + _event(content)

    def _usage_so_far(self, index: int) -> Json:
        if self._prompt_lengths is None:
            return {}
        prompt, count = self._prompt_lengths[index], self._counts[index]
        return {"usage": usage_of(prompt, count)}


def encoded(content: Json) -> bytes:
    """A whole answer as JSON. Piece by piece: one call for megabytes would keep all threads waiting. Half a
    surrogate pair, of a field that is repeated, is "?".
    """
    return "".join(_pieces(content, 5)).encode(errors="replace")


def _pieces(content: object, depth: int) -> Iterator[str]:
    """depth: of what is encoded member by member; what lies deeper is small."""
    if depth and isinstance(content, dict):
        for place, (name, value) in enumerate(content.items()):
            yield f"{',' if place else '{'}{_json(name)}:"
            yield from _pieces(value, depth - 1)
        yield "}" if content else "{}"
    elif depth and isinstance(content, list):
        for place, value in enumerate(content):
            yield "," if place else "["
            yield from _pieces(value, depth - 1)
        yield "]" if content else "[]"
    else:
        yield _json(content)


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _event(content: Json) -> bytes:
    """Line ends of Unicode are escaped: some clients take them for the end of a line of the stream."""
    text = _json(content)
    for end in _LINE_ENDS:
        text = text.replace(end, f"\\u{ord(end):04x}")
    return f"data: {text}\n\n".encode(errors="replace")
