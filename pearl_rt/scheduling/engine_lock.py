"""The right to use an engine: one caller has it at a time, or the queue of submitted requests.

Knows nothing of what its holders do. It refuses an engine that was closed. `with engine_lock:` may begin in
one thread and end in another. No exception that a signal raises can fall between the taking and the `with`,
or keep the lock from being given back: see csrc/python/bind_engine_lock.cpp.
"""

from typing import NoReturn

import pearl_rt._C as _C
from pearl_rt.errors import EngineClosedError, RequestError


class EngineLock(_C.EngineLock):
    """One holder at a time. A caller that finds the lock taken gets an error, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def close(self) -> None:
        """The lock cannot be taken any more; a holder keeps it."""
        self.is_closed = True

    def check_process(self) -> None:
        """Raises EngineClosedError in the child of a fork: the engine's threads are its parent's."""
        if not self.is_home:
            raise EngineClosedError(
                "this process is a fork of the one that built the engine, and has none of its threads: build "
                "another engine here, or start processes by 'spawn' or 'forkserver'"
            )

    def check_open(self) -> None:
        """Raises EngineClosedError once closed, and in the child of a fork."""
        self.check_process()
        if self.is_closed:
            raise EngineClosedError("the engine is closed: build another one")

    def _taken(self) -> NoReturn:
        raise RequestError(
            "the engine is in use, by another thread, by submitted requests or by a stream that was not "
            "read to its end: wait, close() the stream, submit() all, or give each thread its own engine"
        )
