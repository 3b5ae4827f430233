"""stdin, stdout and stderr of a command as they may be: closed, full, of few letters, or read by none."""

import _thread
import errno
import io
import logging
import logging.handlers
import os
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from pearl_rt.errors import ConfigError, RequestError

UNWRITTEN = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF
MOST_LINES = 1000  # of a log that wait to be written
LAST_SECONDS = 1.0  # for those that wait at the end


def note(text: object, end: str = "\n") -> None:
    """A line on stderr. It is lost where stderr is closed or full: no command fails for it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


def open_stdin() -> TextIO:
    """Raises RequestError if it is closed."""
    if sys.stdin is None:
        raise RequestError("stdin is closed: there is nothing to read from it")
    return sys.stdin


def prepare_stdout() -> None:
    """Characters that it has no letters for are written as \\xe9. Raises ConfigError if it is closed."""
    if sys.stdout is None:
        raise ConfigError("stdout is closed: there is nowhere to write to")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def gives_up_stdout(error: OSError) -> bool:
    """Whether stdout takes no more. What waits for it is then dropped, so that the process ends quietly."""
    if error.errno not in UNWRITTEN or error.filename is not None:
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class _Queue(logging.handlers.QueueHandler):
    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self.num_put = self.num_written = 0
        super().__init__(self.lines)

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.lines.qsize() < MOST_LINES:
            self.lines.put(record)
            self.num_put += 1


@contextmanager
def log_apart() -> Iterator[None]:
    """What is logged goes to stderr by a thread of its own: no request waits for a reader that does not read,
    or for a slow disk. Of more than MOST_LINES that wait the later ones are dropped.
    """
    root = logging.getLogger()
    if root.handlers or sys.stderr is None:
        yield
        return
    to, formatter, handler = sys.stderr.fileno(), logging.Formatter(), _Queue()

    def write() -> None:
        while True:
            text = formatter.format(handler.lines.get()) + "\n"
            with suppress(OSError):  # not by sys.stderr, whose lock the end of the process would wait for
                os.write(to, text.encode(errors="backslashreplace"))
            handler.num_written += 1

    _thread.start_new_thread(write, ())  # threading.Thread waits for it, and Ctrl-C may come meanwhile
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        end = time.monotonic() + LAST_SECONDS
        while handler.num_written < handler.num_put and time.monotonic() < end:
            time.sleep(0.01)
