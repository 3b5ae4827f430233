"""Who joins a run while it goes on: requests that wait for a slot and pages, in order, and those given up.

csrc/coordinator/admission.h in Python, with its meaning. Callers submit and cancel from any thread; whoever
runs the rounds looks between two of them. Knows nothing of slots and rounds.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from pearl_rt.types.request import Request


class Admission:
    """The queue of one coordinator. Closed but while a run goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = count()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._cancelled: list[int] = []
        self._closed = True

    def open(self) -> None:
        """A run begins; nobody waits."""
        with self._lock:
            self._waiting.clear()
            self._cancelled.clear()
            self._closed = False

    def close(self) -> None:
        """Nobody can be submitted any more; whoever waits is still there."""
        with self._lock:
            self._closed = True

    def take_id(self) -> int:
        """A number that no other request has."""
        return next(self._ids)

    def submit(self, request: Request) -> int | None:
        """-> its id; None if the run has ended: start another one."""
        with self._lock:
            if self._closed:
                return None
            number = self.take_id()
            self._waiting.append((number, request))
            return number

    def cancel(self, number: int) -> bool:
        """True if it was still waiting, and is now forgotten; else its slot ends within a round."""
        with self._lock:
            for entry in self._waiting:
                if entry[0] == number:
                    self._waiting.remove(entry)
                    return True
            if not self._closed:
                self._cancelled.append(number)
            return False

    def take_waiting(self) -> list[int]:
        """Ids of those that never got a slot, once the run has ended."""
        with self._lock:
            ids = [number for number, _ in self._waiting]
            self._waiting.clear()
            return ids

    def take_cancelled(self) -> list[int]:
        """Ids that were given up since the last call."""
        with self._lock:
            ids, self._cancelled = self._cancelled, []
            return ids

    def has_room(self, fits: Callable[[Iterable[Request]], bool]) -> bool:
        """fits(those that wait, in order), while none of them can get a slot."""
        with self._lock:
            return fits(request for _, request in self._waiting)

    def next(self, reserve: Callable[[Request], bool]) -> tuple[int, Request] | None:
        """The one that has waited longest, once reserve(it): nobody overtakes it."""
        with self._lock:
            if not self._waiting or not reserve(self._waiting[0][1]):
                return None
            return self._waiting.popleft()

    def close_if_empty(self) -> bool:
        """When no slot is at work. False if somebody waits, else nobody can be submitted any more."""
        with self._lock:
            self._closed = self._closed or not self._waiting
            return self._closed
