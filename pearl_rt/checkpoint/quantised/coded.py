"""Rows of a matrix as integer codes in groups: value = scale * code + minimum, in fp32, exactly as stored.

And tensors of a file that have to be computed from what lies there. Knows no format.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pearl_rt.checkpoint.open_file import OpenFile
from pearl_rt.checkpoint.stored_tensors import BlockPlace
from pearl_rt.errors import CheckpointError
from pearl_rt.reference.groups import GROUP, GroupForm, Groups

Bytes: TypeAlias = npt.NDArray[np.uint8]
Codes: TypeAlias = npt.NDArray[np.int8] | npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = "Callable[[int, int], Coded | Floats]"
_VALUES = 1 << 20  # computed at once


@dataclass(frozen=True)
class Coded:
    """Rows of a matrix: along the inputs, `group` consecutive codes share a scale and perhaps a minimum."""

    codes: Codes  # int8 or uint8 [n, k]
    scales: Floats  # fp32 [n, k / group]
    minimums: Floats | None  # fp32 [n, k / group]; None: zeros
    group: int
    bits: int = 8  # 4: codes are 0..15, or -8..7

    def values(self) -> Floats:
        """[n, k] fp32."""
        n, k = self.codes.shape
        found = self.codes.reshape(n, -1, self.group).astype(np.float32)
        found *= self.scales[:, :, None]
        if self.minimums is not None:
            found += self.minimums[:, :, None]
        return found.reshape(n, k)

    @property
    def is_packable(self) -> bool:
        """Whether a packed form has these groups."""
        return self.group % GROUP == 0 or (self.bits == 8 and self.group == GROUP // 2)

    def packable(self) -> Groups:
        """The same codes as the packed forms have them. Scales are rounded to fp16: those of the formats are
        fp16, but for bf16 ones, and for products of two numbers in Q4_K, Q5_K and Q6_K.

        Raises CheckpointError for scales beyond fp16.
        """
        minimums = self.minimums
        codes = self.codes
        if self.bits == 8:
            codes = codes.astype(np.int8)
        elif codes.dtype == np.int8:  # -8..7
            codes = (codes + np.int8(8)).view(np.uint8)
            minimums = self.scales * np.float32(-8)
        with np.errstate(over="ignore"):
            scales = self.scales.astype(np.float16)
            offsets = None if minimums is None else minimums.astype(np.float16)
        if self.group > GROUP:
            return Groups.with_wide_groups(codes, scales, offsets, self.group)
        return Groups(codes, scales, offsets, self.group)

    @property
    def is_finite(self) -> bool:
        """Whether no scale and no minimum is NaN or infinite."""
        minimums = self.scales if self.minimums is None else self.minimums
        return bool(np.isfinite(self.scales).all() and np.isfinite(minimums).all())


@dataclass(frozen=True)
class Blocks:
    """Rows of a GGUF file's blocks, or of its elements, which native code decodes too."""

    type: str  # as llama.cpp has it: "Q4_K"; or a dtype of torch: "float16"
    begin: int  # bytes into the file
    head_rows: int  # of a head whose two halves alternate in the file; 1: rows lie in order


@dataclass(frozen=True)
class ComputedTensor:
    """A tensor whose rows are computed from a file's bytes, some at a time."""

    file: OpenFile
    name: str  # as the file has it
    shape: tuple[int, ...]  # [n, k], or [n]
    rows: Rows  # rows(first, last): these rows, [last - first, k], as codes or as fp32 values
    unit: int = 1  # first and last are multiples of it
    form: GroupForm | None = None  # of groups(); None: it has none
    blocks: Blocks | None = None  # from which `rows` computes; None: from something else
    place: None = None

    def block_place(self, *, keeps_codes: bool) -> BlockPlace | None:
        """See Stored."""
        if self.blocks is None:
            return None
        where = self.file.descriptor, str(self.file.path), self.blocks.begin, self.blocks.type
        return *where, list(self.shape), self.name, self.blocks.head_rows, keeps_codes

    def read(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """In fp32, or rounded once to `dtype`. Raises CheckpointError for NaN and infinity in a scale, and if
        the file is not what it was.
        """
        found = torch.empty(self.shape, dtype=dtype or torch.float32)
        for first, last, rows in self._pieces():
            values = rows.values() if isinstance(rows, Coded) else rows
            found[first:last] = torch.from_numpy(values).reshape(last - first, *self.shape[1:])
        self.file.check_unchanged()
        return found

    def groups(self) -> Groups | None:
        """The codes themselves; None if no packed form has them. Raises as read()."""
        parts = []
        for _, _, rows in self._pieces():
            if not isinstance(rows, Coded) or not rows.is_packable:
                return None
            parts.append(rows.packable())
        self.file.check_unchanged()
        if len(parts) == 1:
            return parts[0]
        minimums = [part.minimums for part in parts if part.minimums is not None]
        return Groups(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scales for part in parts]),
            np.concatenate(minimums) if minimums else None,
            parts[0].group,
        )

    def _pieces(self) -> "Iterator[tuple[int, int, Coded | Floats]]":
        """(first, last, rows [first, last)), of a size that is computed at once."""
        n, k = self.shape[0], prod(self.shape[1:])
        step = max(_VALUES // k // self.unit, 1) * self.unit
        for first in range(0, n, step):
            last = min(first + step, n)
            rows = self.rows(first, last)
            if isinstance(rows, Coded) and not rows.is_finite:
                raise CheckpointError(
                    f"{self.file.path}: tensor {self.name!r} has a scale that is NaN or infinite in rows "
                    f"{first} to {last - 1}: the file is damaged: fetch it again"
                )
            yield first, last, rows
