"""The tensors of safetensors files, each read when it is asked for; and tensors of files by name.

safetensors itself checks a header; here its tensors are read. Knows one file at a time, and no models.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from pearl_rt.checkpoint.open_file import OpenFile
from pearl_rt.errors import CheckpointError, one_line, shown
from pearl_rt.reference.groups import GroupForm, Groups
from pearl_rt.types.json import Json

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = {"I8": torch.int8, "I32": torch.int32, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn}
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_CHUNK = 1 << 24  # bytes that are compared at once

# How a tensor is handed to the executor: a file descriptor, its path, an offset in bytes, dtype and shape.
Place = tuple[int, str, int, str, list[int]]
# A matrix of a GGUF file: as above, with the type of its blocks for dtype; then its name in the file, the
# rows of a head whose halves alternate there or 1, and whether blocks stay codes.
BlockPlace = tuple[int, str, int, str, list[int], str, int, bool]


class Stored(Protocol):
    """A tensor of a file: as it lies there, or computed from what lies there."""

    @property
    def file(self) -> OpenFile: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def form(self) -> GroupForm | None:
        """Of what groups() gives, which is not read."""

    @property
    def place(self) -> Place | None:
        """Where it lies, for native code that reads the file itself; None if it has to be computed."""

    def block_place(self, *, keeps_codes: bool) -> BlockPlace | None:
        """Where blocks lie that native code decodes; None if it cannot. keeps_codes: else it takes values."""

    def read(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy in memory, in its own dtype, or rounded once to `dtype`.

        Raises CheckpointError if the file is not what it was.
        """

    def groups(self) -> Groups | None:
        """The codes of a quantised matrix; None for any other. Raises as read()."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes [begin, end) of `file`."""

    file: OpenFile
    dtype: str  # as safetensors names it: "F32", "BF16", ...
    shape: tuple[int, ...]
    begin: int
    end: int
    form: None = None  # there are no codes

    def read(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = torch.empty(self.shape, dtype=(DTYPES | _CODES)[self.dtype])
        if self.end > self.begin:
            self.file.read_into(memoryview(tensor.view(-1).view(torch.uint8).numpy().data), self.begin)
        self.file.check_unchanged()
        return tensor if dtype is None else tensor.to(dtype)

    def groups(self) -> None:
        """There are no codes."""

    def block_place(self, *, keeps_codes: bool) -> None:
        """There are no blocks."""

    def equals(self, other: "StoredTensor") -> bool:
        """Whether both hold the same bytes, as tensors of one dtype and shape."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        for done in range(0, self.end - self.begin, _CHUNK):
            size = min(_CHUNK, self.end - self.begin - done)
            mine, theirs = bytearray(size), bytearray(size)
            self.file.read_into(memoryview(mine), self.begin + done)
            other.file.read_into(memoryview(theirs), other.begin + done)
            if mine != theirs:
                return False
        return True

    @property
    def place(self) -> Place:
        """For native code that reads the file itself; the file is open while this object lives."""
        dtype = str(DTYPES[self.dtype]).removeprefix("torch.")
        return self.file.descriptor, str(self.file.path), self.begin, dtype, list(self.shape)


class TensorFile(OpenFile):
    """A safetensors file that stays open, with the places of its tensors by name."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for what safetensors refuses, and for what is no file."""
        super().__init__(path)
        length = int.from_bytes(self.read(min(8, self.size), 0), "little")
        raw = self.read(min(8 + length, 8 + _HEADER_LIMIT, self.size), 0)
        try:
            _check_header(raw, self.size)
            header = json.loads(raw[8:], object_pairs_hook=_unique)
        except (SafetensorError, ValueError) as error:
            self.check_no_pointer()
            raise CheckpointError(
                f"{path}, of {self.size} bytes, is truncated, damaged or not a safetensors file "
                f"({one_line(error)}): fetch it again"
            ) from None
        header.pop("__metadata__", None)
        self._header, self._begin = header, 8 + length

    def tensors(self) -> dict[str, StoredTensor]:
        """What it holds, by name. Each keeps the file open."""
        return {name: self._stored(entry) for name, entry in self._header.items()}

    def _stored(self, entry: Json) -> StoredTensor:
        begin, end = (self._begin + offset for offset in entry["data_offsets"])
        return StoredTensor(self, entry["dtype"], tuple(entry["shape"]), begin, end)


class StoredTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, each read into memory when it is asked for."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor, rounded once to `dtype`."""
        return self._stored[name].read(dtype)

    def groups(self, name: str) -> Groups | None:
        """The codes of a quantised matrix; None for any other."""
        return self._stored[name].groups()

    def form(self, name: str) -> GroupForm | None:
        """Which codes it has, before they are read."""
        return self._stored[name].form

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, which is not read."""
        return self._stored[name].shape

    def dtype_of(self, name: str) -> str:
        """Of one tensor, which is not read; bfloat16 of what is computed."""
        place = self._stored[name].place
        return "bfloat16" if place is None else place[3]

    def places(self, *, keeps_codes: bool = True) -> dict[str, Place | BlockPlace]:
        """Where each lies that need not be computed here, for native code that reads them itself and then
        calls check_unchanged(). keeps_codes: blocks of codes stay codes; else they are read as values.
        """
        places = (
            (name, stored.place or stored.block_place(keeps_codes=keeps_codes))
            for name, stored in self._stored.items()
        )
        return {name: place for name, place in places if place is not None}

    def check_unchanged(self) -> None:
        """Raises CheckpointError if a file is not the one whose header was read."""
        for file in {stored.file for stored in self._stored.values()}:
            file.check_unchanged()


def _check_header(raw: bytes, size: int) -> None:
    """Raises SafetensorError for what safetensors refuses in a file of that size with that beginning.

    Its reader takes a name and maps the file. It is given a file in memory that has the beginning and a hole
    for the rest, which no other process can cut in the meantime.
    """
    with open(os.memfd_create("header"), "wb") as file:
        file.write(raw)
        file.flush()
        file.truncate(size)
        with safe_open(f"/proc/self/fd/{file.fileno()}", framework="np"):
            pass


def _unique(pairs: Sequence[tuple[str, object]]) -> Json:
    """An object of JSON. Raises ValueError for a name that stands twice: readers differ in which counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} stands twice in its header")
    return found
