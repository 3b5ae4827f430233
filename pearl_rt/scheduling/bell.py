"""Wakes the threads that wait for something to change.

There is no lock that a waiter could lose when a signal raises an exception in it: whatever a waiter does to
the bell is one operation of a dict. threading.Condition and Event are no such thing: their lock is taken and
given back by Python code, which an exception can cut short.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Bell:
    """Rung after each change, by a thread that hears no signals: any but the main one."""

    def __init__(self) -> None:
        self._wakers: dict[object, Callable[[], object]] = {}

    def ring(self) -> None:
        """Wakes all threads that wait now."""
        while self._wakers:
            try:
                _, wake = self._wakers.popitem()
            except KeyError:  # the last one has just left
                return
            wake()

    @contextmanager
    def heard(self, wake: Callable[[], object]) -> Iterator[None]:
        """While this is open, the next ring calls wake(), once. Look at what may have changed after it is."""
        key = object()
        self._wakers[key] = wake
        try:
            yield
        finally:
            self._wakers.pop(key, None)

    def wait(self, is_over: Callable[[], bool], timeout: float | None = None) -> bool:
        """Waits until is_over(), asked after each ring -> False if it was not within timeout seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_over():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            sleeper = threading.Lock()
            sleeper.acquire()
            with self.heard(sleeper.release):
                if not is_over():
                    sleeper.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX))
        return True
