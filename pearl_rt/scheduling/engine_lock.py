"""Who may use an engine now: one caller at a time, until it is closed.

Knows nothing of what they do. A turn may be taken in one thread and ended in another.
"""

import threading

from pearl_rt.errors import EngineClosedError, RequestError


class Turn:
    """One turn at a time; who finds it taken is told, and does not wait."""

    def __init__(self) -> None:
        self._taken = threading.Lock()
        self._closed = False

    def take(self) -> None:
        """Raises RequestError while another has it, EngineClosedError once closed."""
        self.check_open()
        if not self._taken.acquire(blocking=False):
            raise RequestError(
                "the engine is in use, by another thread, by submitted requests or by a stream that was not "
                "read to its end: wait, close() the stream, submit() all, or give each thread its own engine"
            )

    def end(self) -> None:
        """Who took it gives it back."""
        self._taken.release()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.end()

    def close(self) -> bool:
        """Nobody gets a turn any more; who has one keeps it. Returns whether it was open before."""
        was_open, self._closed = not self._closed, True
        return was_open

    def check_open(self) -> None:
        """Raises EngineClosedError once closed."""
        if self._closed:
            raise EngineClosedError("the engine is closed: build another one")
