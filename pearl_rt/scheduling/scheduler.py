"""Who runs next: submitted requests, first come first served, on as many slots as there are.

One thread, there while anything is in flight, starts requests, hands on their news and hears cancels. Knows
slots by three calls, whether one request runs at a time or several are in one batch; not what a request is.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pearl_rt.errors import EngineClosedError, QueueFullError, ResourceError
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.types.outputs import RequestOutput, StreamChunk

LINGER_S = 1.0  # an idle thread ends after this, so that an engine that nobody closed can be collected


@dataclass(frozen=True)
class News:
    """What became of one running request: a chunk, or its end."""

    request_id: int
    chunk: StreamChunk | None = None
    outcome: RequestOutput | Exception | None = None


class Slots(Protocol):
    """Runs requests, `num_slots` at once. Called by the scheduler's thread only."""

    num_slots: int

    def can_start(self, job: Any) -> bool:
        """Whether a slot is free for this job now; until it is, those behind it wait too."""

    def start(self, request_id: int, job: Any, num_waiting: int) -> None:
        """Begins a job in a free slot. num_waiting: those behind it. Raises what keeps it from running."""

    def poll(self) -> list[News]:
        """Waits for news of what runs, for a round at most, or some tens of milliseconds."""

    def cancel(self, request_id: int) -> RequestOutput:
        """Ends a running job within a round -> what it got."""

    def skip(self, job: Any) -> RequestOutput:
        """The output of a job that never ran."""


class Scheduler:
    """Bounded waiting queue in front of slots.

    take_turn    called before anything runs: raises if the slots are in use by someone else
    end_turn     called when nothing is in flight any more, before the last handle is done
    max_waiting  requests that may wait for a slot
    """

    def __init__(
        self,
        slots: Slots,
        *,
        take_turn: Callable[[], None],
        end_turn: Callable[[], None],
        max_waiting: int,
    ) -> None:
        self._slots = slots
        self._take_turn, self._end_turn = take_turn, end_turn
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._next_id = 0
        self._waiting: deque[tuple[RequestHandle, Any]] = deque()
        self._running: dict[int, RequestHandle] = {}  # changed by the thread only
        self._cancelled: set[int] = set()
        self._in_flight = 0  # handles that are not done
        self._closed = False

    def submit(self, job: Any) -> RequestHandle:
        """Puts a job in the queue. Raises QueueFullError, EngineClosedError, or what take_turn raises."""
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed: build another one")
            if self._in_flight >= self._slots.num_slots + self._max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait already, and max_waiting is {self._max_waiting}: "
                    "try again later, or build the engine with a larger max_waiting"
                )
            if not self._in_flight:
                self._take_turn()
            if self._thread is None:
                self._thread = self._started_thread()
            handle = RequestHandle(self._next_id, self._cancel)
            self._next_id += 1
            self._in_flight += 1
            self._waiting.append((handle, job))
            self._changed.notify_all()
        return handle

    def counts(self) -> dict[str, int]:
        """How many requests run, and how many wait."""
        with self._changed:
            return {"running": len(self._running), "waiting": self._in_flight - len(self._running)}

    def close(self) -> None:
        """Ends what is in flight with EngineClosedError, within a round. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _started_thread(self) -> threading.Thread:
        """It waits for self._changed, which the caller holds."""
        thread = threading.Thread(target=self._work, name="pearl_rt scheduler", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._in_flight:
                self._end_turn()
            raise ResourceError(
                f"no more threads can be started, and one is needed for submitted requests ({error}): raise "
                "the limit (ulimit -u, or pids.max of a container), or end other threads"
            ) from None
        return thread

    def _cancel(self, handle: RequestHandle) -> None:
        with self._changed:
            self._cancelled.add(handle.request_id)
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                idle = not (self._waiting or self._running or self._closed)
                if idle and not self._changed.wait_for(lambda: self._waiting or self._closed, LINGER_S):
                    self._thread = None
                    return
                if self._closed:
                    break
            self._drop_cancelled()
            self._admit()
            if self._running:
                self._hand_on()
        self._end_all()

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            dropped = (
                [entry for entry in self._waiting if entry[0].request_id in cancelled] if cancelled else []
            )
            for entry in dropped:
                self._waiting.remove(entry)
        for handle, job in dropped:
            self._done(handle, self._slots.skip(job))
        for request_id in cancelled & self._running.keys():
            self._end(request_id, self._outcome_of_cancel(request_id))

    def _admit(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or not self._slots.can_start(self._waiting[0][1]):
                    return
                handle, job = self._waiting.popleft()
                num_waiting = len(self._waiting)
                self._running[handle.request_id] = handle
            try:
                self._slots.start(handle.request_id, job, num_waiting)
            except Exception as error:
                self._end(handle.request_id, error)

    def _hand_on(self) -> None:
        try:
            news = self._slots.poll()
        except Exception as error:  # of no request in particular: it ends all that run
            news = [News(request_id, outcome=error) for request_id in self._running]
        for item in news:
            if item.chunk is not None:
                self._running[item.request_id].push(item.chunk)
            if item.outcome is not None:
                self._end(item.request_id, item.outcome)

    def _outcome_of_cancel(self, request_id: int) -> RequestOutput | Exception:
        try:
            return self._slots.cancel(request_id)
        except Exception as error:
            return error

    def _end(self, request_id: int, outcome: RequestOutput | Exception) -> None:
        self._done(self._running[request_id], outcome)

    def _done(self, handle: RequestHandle, outcome: RequestOutput | Exception) -> None:
        with self._changed:
            self._running.pop(handle.request_id, None)
            self._in_flight -= 1
            if not self._in_flight:
                self._end_turn()
        handle.finish(outcome)

    def _end_all(self) -> None:
        for request_id in list(self._running):
            self._outcome_of_cancel(request_id)
            self._end(
                request_id,
                EngineClosedError("the engine was closed while this request ran: build another one"),
            )
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
        for handle, _ in waiting:
            self._done(
                handle,
                EngineClosedError("the engine was closed while this request waited: build another one"),
            )
