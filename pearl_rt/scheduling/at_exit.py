"""What has to be done before the interpreter ends, for objects that may be gone by then."""

import atexit
import weakref
from collections.abc import Callable


class AtExit:
    """Calls a method when the interpreter ends, if its object still lives: behind all threads that are waited
    for, ahead of the end of all others.
    """

    def __init__(self, method: Callable[[], None]) -> None:
        self._method = weakref.WeakMethod(method, lambda _: atexit.unregister(self._call))
        atexit.register(self._call)

    def _call(self) -> None:
        method = self._method()
        if method is not None:
            method()
