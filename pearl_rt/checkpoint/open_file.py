"""A file of a checkpoint that stays open, whose bytes are read where they are asked for.

It is read, and never mapped: a file that is cut or changed meanwhile is an error with its name, not a signal.
Knows nothing of formats.
"""

import os
import stat
import weakref
from pathlib import Path

from pearl_rt.errors import CheckpointError

_POINTER = b"version https://git-lfs"


class OpenFile:
    """Bytes of a regular file."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for what cannot be read, and for what is no file."""
        self.path = path
        try:  # a pipe would be waited for
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self.descriptor)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(
                f"{path} is not a file of bytes, but a folder, a pipe or a device: fetch it"
            )
        self.size, self._changed_ns = status.st_size, status.st_mtime_ns

    def check_no_pointer(self) -> None:
        """Raises CheckpointError for what git-lfs leaves in the place of a file."""
        if self.read(min(len(_POINTER), self.size), 0) == _POINTER:
            raise CheckpointError(
                f"{self.path} is a pointer of git-lfs, not the file: `git lfs pull`, or fetch it again"
            )

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from there. Raises CheckpointError if the file ends before."""
        raw = bytearray(count)
        self.read_into(memoryview(raw), offset)
        return bytes(raw)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` from there. Raises CheckpointError if the file ends before."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
                if not count:
                    raise CheckpointError(
                        f"{self.path} was cut while it was read, from {self.size} bytes to at most "
                        f"{offset + done}: load it again once nothing writes to it"
                    )
                done += count
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error

    def check_unchanged(self) -> None:
        """Raises CheckpointError if the file is not the one whose header was read."""
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self._changed_ns):
            raise CheckpointError(
                f"{self.path} was changed while it was read: load it again once nothing writes to it"
            )
