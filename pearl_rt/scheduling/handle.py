"""A submitted request, as its caller holds it: chunks as they come, the whole output, and a way to cancel.

Knows nothing of who runs it. The side that does pushes chunks, and at last an output or an error, from its
own thread; any thread and any asyncio loop may read.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

from pearl_rt.types.outputs import RequestOutput, StreamChunk


class RequestHandle:
    """One request in flight.

    `for chunk in handle` and `async for chunk in handle` yield every chunk from the first on, each as soon as
    it is verified, and then raise the request's error if there was one; result(), or `await handle`, is the
    whole output. Leaving a loop early does not cancel: cancel() does.
    """

    def __init__(self, request_id: int, on_cancel: Callable[["RequestHandle"], None]) -> None:
        self.request_id = request_id
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._chunks: list[StreamChunk] = []
        self._output: RequestOutput | None = None
        self._error: Exception | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether the output, or the error, is there."""
        return self._output is not None or self._error is not None

    def cancel(self) -> None:
        """Ends the request within a round; what was verified is its output, "abort". Nothing if it is
        done.
        """
        if not self.done:
            self._on_cancel(self)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the output. Raises the request's error; TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"request {self.request_id} was not done within {timeout} s")
            return self._outcome()

    def __iter__(self) -> Iterator[StreamChunk]:
        place = 0
        while True:
            with self._changed:
                while not self.done and len(self._chunks) == place:
                    self._changed.wait()
                chunks = self._chunks[place:]
                if not chunks:
                    self._outcome()
                    return
            for chunk in chunks:
                place += 1
                yield chunk

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        place = 0
        with _Listening(self) as news:
            while True:
                news.clear()
                with self._changed:
                    chunks, done = self._chunks[place:], self.done
                for chunk in chunks:
                    place += 1
                    yield chunk
                if not chunks and done:
                    self._outcome()
                    return
                if not chunks:
                    await news.wait()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self._wait().__await__()

    async def _wait(self) -> RequestOutput:
        with _Listening(self) as news:
            while not self.done:
                news.clear()
                if not self.done:
                    await news.wait()
        return self._outcome()

    def push(self, chunk: StreamChunk) -> None:
        """The runner's: one more chunk."""
        with self._changed:
            self._chunks.append(chunk)
            self._tell()

    def finish(self, outcome: RequestOutput | Exception) -> None:
        """The runner's: how it ended, once."""
        with self._changed:
            if isinstance(outcome, Exception):
                self._error = outcome
            else:
                self._push_rest(outcome)
                self._output = outcome
            self._tell()

    def _push_rest(self, output: RequestOutput) -> None:
        """The last chunk of a request that was cut short: what no chunk had, and the reason."""
        if self._chunks and self._chunks[-1].finish_reason is not None:
            return
        num_tokens = sum(len(chunk.token_ids) for chunk in self._chunks)
        num_characters = sum(len(chunk.text) for chunk in self._chunks)
        logprobs = None if output.logprobs is None else output.logprobs[num_tokens:]
        rest = output.token_ids[num_tokens:], output.text[num_characters:]
        self._chunks.append(StreamChunk(*rest, output.finish_reason, logprobs))

    def _tell(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def _outcome(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output


class _Listening:
    """An asyncio event of the running loop that is set at every piece of news."""

    def __init__(self, handle: RequestHandle) -> None:
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        with self._handle._changed:
            self._handle._listeners.append(self._listener)
        return self._event

    def __exit__(self, *_: object) -> None:
        with self._handle._changed:
            self._handle._listeners.remove(self._listener)

    def _listener(self) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody listens there any more
            self._loop.call_soon_threadsafe(self._event.set)
