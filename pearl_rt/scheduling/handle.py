"""A submitted request, as its caller holds it: chunks as they come, the whole output, and a way to cancel.

Knows nothing of the scheduler that runs it. The scheduler pushes chunks, and at last an output or an error,
from its own thread; any thread and any asyncio loop may read.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from functools import partial

from pearl_rt.scheduling.bell import Bell
from pearl_rt.types.outputs import RequestOutput, StreamChunk


class RequestHandle:
    """One request in flight.

    `for chunk in handle` and `async for chunk in handle` yield every chunk from the first on, each as soon as
    it is verified, and then raise the request's error if there was one; result(), or `await handle`, is the
    whole output. Leaving a loop early does not cancel: cancel() does, and so does a task that is cancelled
    while it awaits the handle or is in a loop over it.
    """

    def __init__(
        self,
        request_id: int,
        on_cancel: Callable[["RequestHandle"], None],
        check_process: Callable[[], None],
    ) -> None:
        """on_cancel: ends the request. check_process: raises in a process that will never run it."""
        self.request_id = request_id
        self._on_cancel = on_cancel
        self._check_process = check_process
        self._news = Bell()
        self._chunks: list[StreamChunk] = []
        self._output: RequestOutput | None = None
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether the output, or the error, is there."""
        return self._output is not None or self._error is not None

    def cancel(self) -> None:
        """Ends the request within a round; what was verified is its output, "abort", whose metrics have no
        trace. Nothing if it is done.
        """
        if not self.done:
            self._on_cancel(self)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the output. Raises the request's error; TimeoutError after `timeout` seconds."""
        if not self._news.wait(self._is_done, timeout):
            raise TimeoutError(f"request {self.request_id} was not done within {timeout} s")
        return self._outcome()

    def __iter__(self) -> Iterator[StreamChunk]:
        place = 0
        while True:
            self._news.wait(partial(self._has, place))
            if place == len(self._chunks):
                self._outcome()
                return
            yield self._chunks[place]
            place += 1

    def __aiter__(self) -> AsyncIterator[StreamChunk]:
        return _Chunks(self)

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return self._wait().__await__()

    async def _wait(self) -> RequestOutput:
        await self._until(self._is_done)
        return self._outcome()

    async def _until(self, is_over: Callable[[], bool]) -> None:
        """Waits in the running loop. A task that is cancelled here cancels the request."""
        loop = asyncio.get_running_loop()
        try:
            while not is_over():
                news = asyncio.Event()
                with self._news.heard(partial(_tell, loop, news)):
                    if not is_over():
                        await news.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _is_done(self) -> bool:
        if not self.done:
            self._check_process()
        return self.done

    def _has(self, place: int) -> bool:
        """Whether there is a chunk at this place, or never will be."""
        return len(self._chunks) > place or self._is_done()

    def push(self, chunk: StreamChunk) -> None:
        """The runner's: one more chunk."""
        self._chunks.append(chunk)
        self._news.ring()

    def finish(self, outcome: RequestOutput | Exception) -> None:
        """The runner's: how it ended, once."""
        if isinstance(outcome, Exception):
            self._error = outcome
        else:
            self._push_rest(outcome)
            self._output = outcome
        self._news.ring()

    def _push_rest(self, output: RequestOutput) -> None:
        """The last chunk of a request that was cut short: what no chunk had, and the reason."""
        if self._chunks and self._chunks[-1].finish_reason is not None:
            return
        num_tokens = sum(len(chunk.token_ids) for chunk in self._chunks)
        num_characters = sum(len(chunk.text) for chunk in self._chunks)
        logprobs = None if output.logprobs is None else output.logprobs[num_tokens:]
        rest = output.token_ids[num_tokens:], output.text[num_characters:]
        origins = output.metrics.origins[num_tokens:]
        self._chunks.append(StreamChunk(*rest, output.finish_reason, logprobs, origins))

    def _outcome(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output


class _Chunks:
    """One `async for` over a handle."""

    def __init__(self, handle: RequestHandle) -> None:
        self._handle = handle
        self._place = 0
        self._task: asyncio.Task[object] | None = None  # that has asked last
        self._num_cancels = 0  # that it had been asked for by then

    def __aiter__(self) -> AsyncIterator[StreamChunk]:
        return self

    async def __anext__(self) -> StreamChunk:
        handle, self._task = self._handle, asyncio.current_task()
        self._num_cancels = self._task.cancelling() if self._task is not None else 0
        await handle._until(partial(handle._has, self._place))
        if self._place == len(handle._chunks):
            handle._outcome()
            raise StopAsyncIteration
        self._place += 1
        return handle._chunks[self._place - 1]

    def __del__(self) -> None:
        """The loop was left: by its end, by a break, or because the task is cancelled in the loop's body."""
        with suppress(RuntimeError):  # no loop runs in this thread
            task = asyncio.current_task()
            if task is not None and task is self._task and task.cancelling() > self._num_cancels:
                self._handle.cancel()


def _tell(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop was closed: no task waits there any more
        loop.call_soon_threadsafe(news.set)
