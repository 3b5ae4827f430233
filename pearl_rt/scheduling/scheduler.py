"""The queue of submitted requests, first come first served, on as many slots as there are.

One thread, there while anything is in flight, starts requests, hands on their news and hears cancels. Knows
slots by five calls, whether one request runs at a time or several are in one batch; not what a request is.

Python raises exceptions of signals in the main thread only, between any two instructions. So callers change
little, in an order that may be cut anywhere, and the thread does the rest. Locks are such as are written in
C: their `with` is taken, and given back, in one piece.
"""

import _thread
import queue
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from pearl_rt.errors import EngineClosedError, QueueFullError, ResourceError
from pearl_rt.scheduling.at_exit import AtExit
from pearl_rt.scheduling.bell import Bell
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.types.outputs import RequestOutput, StreamChunk

LINGER_S = 1.0  # an idle thread ends after this, so that an engine that was not closed can be collected


News = tuple[int, StreamChunk | RequestOutput | Exception]  # what became of one running request, by its id


class QueueLock(Protocol):
    """The right to use the slots: what a queue needs of pearl_rt.scheduling.engine_lock.EngineLock."""

    @property
    def is_home(self) -> bool: ...

    def check_process(self) -> None:
        """Raises in the child of a fork."""

    def take_for_queue(self) -> None:
        """Raises if another caller has the slots; nothing happens if the queue has them."""

    def end_for_queue(self) -> None:
        """Nothing happens if the queue has them not."""


class Waiting(Protocol):
    """What is submitted: a job."""

    def finish(self) -> RequestOutput:
        """The output of one that never ran."""


JobT = TypeVar("JobT", bound=Waiting)
RunT_contra = TypeVar("RunT_contra", bound=Waiting, contravariant=True)


class Slots(Protocol[RunT_contra]):
    """Runs requests, `num_slots` at once. Called by the scheduler's thread only."""

    num_slots: int

    def clear(self) -> None:
        """Ends whatever runs: another caller may have left it so. Called before a first job starts."""

    def can_start(self, job: RunT_contra) -> bool:
        """Whether a slot is free for this job now; until it is, those behind it wait too."""

    def start(self, request_id: int, job: RunT_contra, num_waiting: int) -> None:
        """Begins a job in a free slot. num_waiting: those behind it. Raises what keeps it from running."""

    def poll(self) -> list[News]:
        """Waits for news of what runs, for a round at most, or some tens of milliseconds."""

    def cancel(self, request_id: int) -> RequestOutput:
        """Ends a running job within a round -> what it got."""


class Scheduler(Generic[JobT]):
    """Bounded waiting queue in front of slots.

    engine_lock  taken before anything runs, given back when nothing is in flight any more, before the last
                 handle is done
    ids          numbers of requests, none used twice
    max_waiting  requests that may wait for a slot
    """

    def __init__(
        self,
        slots: Slots[JobT],
        *,
        engine_lock: QueueLock,
        ids: Iterator[int],
        max_waiting: int,
    ) -> None:
        self._slots = slots
        self._engine_lock = engine_lock
        self._ids = ids
        self._max_waiting = max_waiting
        self._lock = threading.RLock()  # a handler of a signal may come back here
        self._inbox: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # ids to cancel; None: look around
        self._thread: int | None = None  # that is at work
        self._thread_left = Bell()
        self._waiting: deque[tuple[RequestHandle, JobT]] = deque()
        self._running: dict[int, RequestHandle] = {}  # changed by the thread only
        self._cancelled: set[int] = set()  # taken from the inbox; the thread's
        self._closed = False
        AtExit(self.close)  # the thread must not be at work when the interpreter goes

    def submit(self, job: JobT) -> RequestHandle:
        """Puts a job in the queue. Raises QueueFullError, EngineClosedError, or what the lock raises."""
        handle = RequestHandle(next(self._ids), self._cancel, self._engine_lock.check_process)
        try:
            with self._lock:
                self._check_room()
                self._start_thread()  # first: if this is cut short, the thread gives the lock back
                self._engine_lock.take_for_queue()
                self._waiting.append((handle, job))
            self._inbox.put(None)
        except BaseException:
            handle.cancel()
            raise
        return handle

    def counts(self) -> dict[str, int]:
        """How many requests run, and how many wait."""
        with self._lock:
            return {"running": len(self._running), "waiting": len(self._waiting)}

    def close(self) -> None:
        """Ends what is in flight with EngineClosedError, within a round, and waits for that. Calling it again
        does nothing. In the scheduler's own thread, where a finalizer may call it, it does not wait.
        """
        if not self._engine_lock.is_home:
            return
        self._closed = True
        self._inbox.put(None)
        if self._thread != _thread.get_ident():
            self._thread_left.wait(self._is_over)

    def _is_over(self) -> bool:
        """Whether nothing is in flight, nor the thread there. Where something waits it is, or is about to."""
        with self._lock:
            return not self._waiting and self._thread is None

    def _check_room(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed: build another one")
        num_waiting = len(self._waiting)
        if num_waiting + len(self._running) >= self._slots.num_slots + self._max_waiting:
            raise QueueFullError(
                f"{num_waiting} requests wait already, and max_waiting is {self._max_waiting}: "
                "try again later, or build the engine with a larger max_waiting"
            )

    def _start_thread(self) -> None:
        """Starts the thread if it is not there. Not a threading.Thread: an exception in its start() may leave
        a lock taken that the new thread waits for.
        """
        if self._thread is None:
            try:
                _thread.start_new_thread(self._work, ())
            except RuntimeError as error:
                raise ResourceError(
                    "no more threads can be started, and one is needed for submitted requests "
                    f"({error}): raise the limit (ulimit -u, or pids.max of a container), or end others"
                ) from None

    def _cancel(self, handle: RequestHandle) -> None:
        with self._lock:
            if handle.request_id in self._running or any(entry[0] is handle for entry in self._waiting):
                self._inbox.put(handle.request_id)

    def _work(self) -> None:
        with self._lock:
            if self._thread is not None:  # another was started first
                return
            self._thread = _thread.get_ident()
        try:
            while not self._closed:
                if not self._hear():
                    return
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._hand_on()
            self._end_all("the engine was closed")
        except BaseException as error:  # whatever it is, no request waits for ever
            self._end_all(f"the scheduler failed ({error!r})")
            raise
        finally:
            self._thread_left.ring()

    def _hear(self) -> bool:
        """Reads the inbox; waits LINGER_S for it where nothing is in flight -> False: the thread leaves."""
        try:
            while True:
                message = self._inbox.get(timeout=0 if self._is_busy() else LINGER_S)
                if message is not None:
                    self._cancelled.add(message)
        except queue.Empty:
            with self._lock:
                goes_on = self._is_busy()
                if not goes_on:
                    self._thread = None
            return goes_on

    def _is_busy(self) -> bool:
        """Whether there is something to do. If not, the slots are free for others."""
        with self._lock:
            if self._waiting or self._running or self._closed:
                return True
            self._engine_lock.end_for_queue()
            return False

    def _drop_cancelled(self) -> None:
        cancelled, self._cancelled = self._cancelled, set()
        if not cancelled:
            return
        with self._lock:
            dropped = [entry for entry in list(self._waiting) if entry[0].request_id in cancelled]
            for entry in dropped:
                self._waiting.remove(entry)
        for handle, job in dropped:
            self._done(handle, job.finish())
        for request_id in cancelled & self._running.keys():
            self._end(request_id, self._outcome_of_cancel(request_id))

    def _admit(self) -> None:
        if not self._running and self._waiting:
            self._slots.clear()
        while True:
            with self._lock:
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
            news = [(request_id, error) for request_id in self._running]
        for request_id, item in news:
            if isinstance(item, StreamChunk):
                self._running[request_id].push(item)
            else:
                self._end(request_id, item)

    def _outcome_of_cancel(self, request_id: int) -> RequestOutput | Exception:
        try:
            return self._slots.cancel(request_id)
        except Exception as error:
            return error

    def _end(self, request_id: int, outcome: RequestOutput | Exception) -> None:
        self._done(self._running[request_id], outcome)

    def _done(self, handle: RequestHandle, outcome: RequestOutput | Exception) -> None:
        with self._lock:
            self._running.pop(handle.request_id, None)
            if not self._running and not self._waiting:
                self._engine_lock.end_for_queue()
        handle.finish(outcome)

    def _end_all(self, why: str) -> None:
        """Ends all that is in flight, and then the thread."""
        for request_id in list(self._running):
            self._outcome_of_cancel(request_id)
            self._end(request_id, EngineClosedError(f"{why} while this request ran: build another one"))
        while True:
            with self._lock:
                if not self._waiting:
                    self._engine_lock.end_for_queue()
                    self._thread = None
                    return
                handle, _ = self._waiting.popleft()
            self._done(handle, EngineClosedError(f"{why} while this request waited: build another one"))
