"""The header of a GGUF file: its metadata by key, and where its tensors lie.

Every count and length is compared with the bytes that are left before anything is taken for it, so that a
damaged file costs no more memory than its size. Knows nothing of models, and nothing of what a tensor's bytes
mean.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pearl_rt.checkpoint.gguf.types import SIZES, UNSUPPORTED
from pearl_rt.checkpoint.open_file import OpenFile
from pearl_rt.errors import CheckpointError, one_line, shown

Value = int | float | bool | str
MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Types of metadata by their number, as struct names them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q").unpack_from
_CHUNK = 1 << 20  # bytes that are read at once
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `size` bytes at `begin` of `file`."""

    file: OpenFile
    name: str
    type: str  # "Q4_K", "F32", ...
    shape: tuple[int, ...]  # [out, in], as torch has it: the file counts the other way round
    begin: int
    size: int


@dataclass(frozen=True)
class _Array:
    """An array of metadata that was not read yet: `count` items of a type at an offset."""

    item: int
    count: int
    begin: int
    end: int


class GgufHeader:
    """The header of one file, which stays open."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for what cannot be read, is no GGUF file, or contradicts itself."""
        self.file = OpenFile(path)
        self._raw = bytearray()  # what was read from the beginning on
        self._values: dict[str, Value | _Array] = {}
        try:
            self._read()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a name or a text in its header is not UTF-8 ({error.reason})") from None

    def get(self, key: str) -> Value | None:
        """The value of a key that holds one number, flag or text; None without it."""
        value = self._values.get(key)
        if isinstance(value, _Array):
            raise self.damaged(f"{key} is a list of {value.count}, expected one value")
        return value

    def integer(self, key: str, default: int | None = None) -> int | None:
        """Raises CheckpointError for what is no integer."""
        value = self.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.damaged(f"{key} is {value!r}, expected an integer")
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float | None:
        """Raises CheckpointError for what is no number."""
        value = self.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.damaged(f"{key} is {value!r}, expected a number")
        return default if value is None else float(value)

    def text(self, key: str) -> str | None:
        """Raises CheckpointError for what is no text."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.damaged(f"{key} is {value!r}, expected a text")
        return value

    def flag(self, key: str) -> bool | None:
        """Raises CheckpointError for what is neither true nor false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.damaged(f"{key} is {value!r}, expected true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of texts; None without the key. Raises CheckpointError for what is none."""
        array = self._array(key, "texts")
        if array is None:
            return None
        if array.item != _STRING:
            raise self.damaged(f"{key} is a list of other values, expected texts")
        found, at, raw = [], 0, bytes(self._raw[array.begin : array.end])
        try:
            for _ in range(array.count):
                begin = at + 8
                at = begin + _LENGTH(raw, at)[0]
                found.append(raw[begin:at].decode())
        except UnicodeDecodeError as error:
            raise self.damaged(f"text {len(found)} of {key} is not UTF-8 ({error.reason})") from None
        return found

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers; None without the key. Raises CheckpointError for what is none."""
        array = self._array(key, "numbers")
        if array is None:
            return None
        if array.item not in _SCALARS:
            raise self.damaged(f"{key} is a list of texts, expected numbers")
        return list(struct.unpack_from(f"<{array.count}{_SCALARS[array.item]}", self._raw, array.begin))

    def keys(self) -> Iterator[str]:
        return iter(self._values)

    def damaged(self, what: str) -> CheckpointError:
        """An error that names the file, to be raised."""
        return CheckpointError(f"{self.file.path}: {one_line(what, 500)}: fetch the file again")

    def _array(self, key: str, expected: str) -> _Array | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, _Array):
            raise self.damaged(f"{key} is {value!r}, expected a list of {expected}")
        return value

    def _read(self) -> None:
        begin = self._bytes(0, min(24, self.file.size))
        if begin[:4] != MAGIC:
            raise self.damaged(f"is not a GGUF file: it begins with {bytes(begin[:4])!r}, not {MAGIC!r}")
        if len(begin) < 24:
            raise self._truncated(24)
        version, num_tensors, num_keys = struct.unpack_from("<IQQ", begin, 4)
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:
                raise CheckpointError(
                    f"{self.file.path} is a big-endian GGUF file, which is not read: "
                    "fetch the little-endian one"
                )
            raise CheckpointError(
                f"{self.file.path} is GGUF version {version}, which is not read ({_VERSIONS[0]} and "
                f"{_VERSIONS[1]} are): fetch a file of one of these, or a newer pearl_rt"
            )
        at = 24
        self._check_room("metadata entries", num_keys, 13, at)  # a key's length, its type, one byte
        for _ in range(num_keys):
            key, at = self._string(at)
            if key in self._values:
                raise self.damaged(f"{key} stands twice in its metadata")
            self._values[key], at = self._value(key, at)
        self._check_room("tensors", num_tensors, 24, at)
        infos = []
        for _ in range(num_tensors):
            info, at = self._info(at)
            infos.append(info)
        alignment = self.integer("general.alignment", 32)
        if not alignment or alignment < 0 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment}, not a power of two")
        begin_of_data = (at + alignment - 1) // alignment * alignment
        self.tensors = self._entries(infos, begin_of_data, alignment)

    def _entries(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], begin_of_data: int, alignment: int
    ) -> Mapping[str, TensorEntry]:
        entries: dict[str, TensorEntry] = {}
        for name, shape, number, offset in infos:
            if name in entries:
                raise self.damaged(f"tensor {name!r} stands twice in it")
            if number in UNSUPPORTED:
                raise CheckpointError(
                    f"{self.file.path}: tensor {shown(name)} is {UNSUPPORTED[number]}, which is not "
                    f"supported ({', '.join(kind.name for kind in SIZES.values())} are): take a file of one "
                    "of these, for instance Q4_K_M, Q5_K_M, Q6_K or Q8_0"
                )
            if number not in SIZES:
                raise self.damaged(f"tensor {name!r} is of type {number}, which is unknown")
            kind = SIZES[number]
            if shape[-1] % kind.block:
                raise self.damaged(
                    f"tensor {name!r} {list(shape)} has rows that are no multiple of the {kind.block} of "
                    f"{kind.name}"
                )
            size = prod(shape) // kind.block * kind.bytes
            if offset % alignment:
                raise self.damaged(f"tensor {name!r} lies at {offset}, no multiple of {alignment}")
            begin = begin_of_data + offset
            if begin + size > self.file.size:
                raise CheckpointError(
                    f"{self.file.path} is truncated: tensor {shown(name)} needs bytes {begin} to "
                    f"{begin + size}, the file has {self.file.size}: fetch it again"
                )
            entries[name] = TensorEntry(self.file, name, kind.name, shape, begin, size)
        return entries

    def _info(self, at: int) -> tuple[tuple[str, tuple[int, ...], int, int], int]:
        """(name, shape, number of its type, offset) and the end of one entry."""
        name, at = self._string(at)
        (dimensions,) = struct.unpack("<I", self._bytes(at, 4))
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"tensor {name!r} has {dimensions} dimensions")
        *sizes, number, offset = struct.unpack(f"<{dimensions}QIQ", self._bytes(at + 4, 8 * dimensions + 12))
        if not all(sizes):
            raise self.damaged(f"tensor {name!r} has shape {sizes[::-1]}")
        return (name, tuple(reversed(sizes)), number, offset), at + 16 + 8 * dimensions

    def _value(self, key: str, at: int) -> tuple[Value | _Array, int]:
        """One value of metadata, and its end."""
        (kind,) = struct.unpack("<I", self._bytes(at, 4))
        at += 4
        if kind == _STRING:
            return self._string(at)
        if kind == _ARRAY:
            return self._items(key, at)
        if kind not in _SCALARS:
            raise self.damaged(f"{key} is of type {kind}, which is unknown")
        size = struct.calcsize(_SCALARS[kind])
        (value,) = struct.unpack("<" + _SCALARS[kind], self._bytes(at, size))
        return value, at + size

    def _items(self, key: str, at: int) -> tuple[_Array, int]:
        """Where an array's items lie, and its end."""
        item, count = struct.unpack("<IQ", self._bytes(at, 12))
        at = begin = at + 12
        if item in _SCALARS:
            end = at + count * struct.calcsize(_SCALARS[item])
            self._check_room(f"items of {key}", count, struct.calcsize(_SCALARS[item]), at)
            self._bytes(at, end - at)
        elif item == _STRING:
            self._check_room(f"texts of {key}", count, 8, at)
            for _ in range(count):
                if at + 8 <= len(self._raw):
                    at += 8 + _LENGTH(self._raw, at)[0]
                else:
                    at = self._end_of_string(at)
            end = at
            self._bytes(end, 0)
        else:
            raise self.damaged(f"{key} is a list of type {item}, which is not read")
        return _Array(item, count, begin, end), end

    def _string(self, at: int) -> tuple[str, int]:
        end = self._end_of_string(at)
        return self._raw[at + 8 : end].decode(), end

    def _end_of_string(self, at: int) -> int:
        length = int.from_bytes(self._bytes(at, 8), "little")
        end = at + 8 + length
        if len(self._raw) < end:
            self._bytes(at + 8, length)
        return end

    def _check_room(self, what: str, count: int, least: int, at: int) -> None:
        if count * least > self.file.size - at:
            raise CheckpointError(
                f"{self.file.path} says that it has {count} {one_line(what)}, for which its "
                f"{self.file.size} bytes have no room: it is truncated or damaged: fetch it again"
            )

    def _bytes(self, at: int, count: int) -> bytearray:
        """Bytes of the header, read as they are needed."""
        end = at + count
        if end > len(self._raw):
            if end > self.file.size:
                raise self._truncated(end)
            more = min(max(end - len(self._raw), _CHUNK), self.file.size - len(self._raw))
            self._raw += self.file.read(more, len(self._raw))
        return self._raw[at:end]

    def _truncated(self, end: int) -> CheckpointError:
        return CheckpointError(
            f"{self.file.path} is truncated: its header needs {end} bytes or more, the file has "
            f"{self.file.size}: fetch it again"
        )
