"""In numpy: a matrix of codes of 8 or 4 bits in groups that share a scale, and its linear layer.

The CPU's kernels match this definition. Along the inputs, `group` consecutive codes share a scale, and
perhaps a minimum:

    value = scale * code + minimum

Files of quantised weights become Groups, and so do wider weights that an engine rounds when it loads them.
Knows no file format and no packing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pearl_rt.errors import CheckpointError

Codes: TypeAlias = npt.NDArray[np.int8] | npt.NDArray[np.uint8]
Halves: TypeAlias = npt.NDArray[np.float16]
Floats: TypeAlias = npt.NDArray[np.float32]
Reals: TypeAlias = Floats | npt.NDArray[np.float64] | Halves
GROUP = 32  # inputs to a scale, where nothing else is given
BITS = (8, 4)
MOST_CODE = 127  # of 8 bits, when we round: -127..127
LEAST_MAXIMUM = np.float32(2.0**-100)  # of a group of activations that is not all zeros


@dataclass(frozen=True)
class GroupForm:
    """Which codes a matrix has, whatever they are."""

    bits: int  # 8 or 4
    group: int = GROUP  # inputs that share a scale
    has_minimums: bool = False

    @classmethod
    def packed(cls, bits: int, group: int, has_minimums: bool) -> "GroupForm | None":
        """Of codes in groups of so many inputs, as they are packed; None if no packed form has them."""
        if group % GROUP == 0:
            return cls(bits, GROUP, has_minimums)
        return cls(bits, group, has_minimums) if (bits, group) == (8, GROUP // 2) else None

    @classmethod
    def joined(cls, parts: "Sequence[GroupForm | None]", bits: int) -> "GroupForm | None":
        """The form that holds all rows of some matrices, which are packed as one; None: no codes. parts: of
        each, None if it has no codes. bits: 8 or 4, to which what is wider is rounded; 0: nothing is.
        """
        kept = [part for part in parts if part is not None and part.keeps_codes(bits)]
        own = [part.bits for part in kept] + [bits] * (len(parts) - len(kept))
        if 0 in own:
            return None
        group = min((part.group for part in kept), default=GROUP)
        return cls(max(own), group, 4 in own or any(part.has_minimums for part in kept))

    def keeps_codes(self, bits: int) -> bool:
        """Whether a matrix of this form stays as it is where wider ones are rounded to so many bits."""
        return bits == 0 or self.bits <= bits

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Of a matrix [n, k] with its scales and minimums."""
        return prod(shape) * (self.bits * self.group + 16 * (1 + self.has_minimums)) // (8 * self.group)


@dataclass(frozen=True)
class Outline:
    """A matrix of codes before it is read: for sizes."""

    shape: tuple[int, int]
    form: GroupForm


@dataclass(frozen=True)
class Groups:
    """A matrix [n, k], row-major as Hugging Face's linear weights are: [out, in].

    codes     int8 [n, k], -128..127: the form of 8 bits; or uint8 [n, k], 0..15: the form of 4 bits
    scales    float16 [n, ceil(k / group)], finite; the last group of a row may be short
    minimums  float16 [n, ceil(k / group)], finite; None: zeros
    group     32, or 16 with 8 bits

    Raises CheckpointError for arrays that are no such matrix.
    """

    codes: Codes
    scales: Halves
    minimums: Halves | None = None
    group: int = GROUP

    def __post_init__(self) -> None:
        if self.codes.dtype not in (np.int8, np.uint8) or self.codes.ndim != 2:
            raise CheckpointError(
                f"codes are {self.codes.dtype} {list(self.codes.shape)}; they must be int8 (8 bits) or uint8 "
                "(4 bits) of two dimensions"
            )
        if self.group not in ((GROUP, GROUP // 2) if self.bits == 8 else (GROUP,)):
            raise CheckpointError(
                f"group {self.group} of {self.bits} bits is not packed: it must be {GROUP}, or 16 with 8 bits"
            )
        wanted = (self.codes.shape[0], -(-self.codes.shape[1] // self.group))
        for name, values in (("scales", self.scales), ("minimums", self.minimums)):
            if values is None:
                continue
            if values.dtype != np.float16 or values.shape != wanted:
                raise CheckpointError(
                    f"{name} are {values.dtype} {list(values.shape)}; they must be float16 {list(wanted)}"
                )
            if not np.isfinite(values).all():
                raise CheckpointError(f"{name} have NaN or infinite values: the file is damaged")
        if self.bits == 4 and self.codes.size and self.codes.max() > 15:
            raise CheckpointError(f"a code of 4 bits is {self.codes.max()}; it must be 0 to 15")

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        n, k = self.codes.shape
        return n, k

    @property
    def bits(self) -> int:
        """8 or 4: which packed form these codes have."""
        return 8 if self.codes.dtype == np.int8 else 4

    @property
    def form(self) -> GroupForm:
        """Codes of 4 bits are packed with a minimum each."""
        return GroupForm(self.bits, self.group, self.bits == 4 or self.minimums is not None)

    @classmethod
    def with_wide_groups(cls, codes: Codes, scales: Reals, minimums: Reals | None, group: int) -> "Groups":
        """From groups of a multiple of 32 inputs, or of whole rows: each scale is repeated."""
        num_groups = -(-codes.shape[1] // GROUP)
        if group < 1 or group % GROUP != 0:
            raise CheckpointError(f"group {group} is not a multiple of {GROUP}: requantise the model")

        def repeated(values: Reals) -> Halves:
            return np.repeat(values, group // GROUP, axis=1)[:, :num_groups].astype(np.float16)

        return cls(codes, repeated(scales), None if minimums is None else repeated(minimums), GROUP)

    @classmethod
    def quantize(cls, matrix: Reals, bits: int) -> "Groups":
        """Rounds a matrix [n, k] to the nearest codes, in groups of 32.

        8 bits: the scale is the largest magnitude / 127. 4 bits: the minimum is the smallest value, the scale
        (largest - smallest) / 15. Scales are rounded to fp16 before codes are chosen. Raises CheckpointError
        for NaN, infinite, and values beyond fp16.
        """
        if bits not in BITS:
            raise CheckpointError(f"bits {bits} is not one of {BITS}")
        x = np.asarray(matrix, np.float32)
        grouped = _in_groups(x, GROUP)
        padding = _in_groups(np.ones_like(x), GROUP) == 0  # of the last group
        with np.errstate(over="ignore", invalid="ignore"):
            if bits == 8:
                scales = (np.abs(grouped).max(-1) / np.float32(MOST_CODE)).astype(np.float16)
                low, offset = -MOST_CODE, np.float32(0)
                minimums = None
            else:
                largest = np.where(padding, np.float32(-np.inf), grouped).max(-1)
                smallest = np.where(padding, np.float32(np.inf), grouped).min(-1)
                minimums = smallest.astype(np.float16)
                scales = ((largest - minimums.astype(np.float32)) / np.float32(15)).astype(np.float16)
                scales = np.maximum(scales, np.float16(0))
                low, offset = 0, minimums.astype(np.float32)[..., None]
        if not (np.isfinite(scales).all() and (minimums is None or np.isfinite(minimums).all())):
            raise CheckpointError(f"weights that are NaN, infinite or beyond fp16 cannot have {bits} bits")
        wide = scales.astype(np.float32)[..., None]
        steps = np.divide(grouped - offset, wide, out=np.zeros_like(grouped), where=wide > 0)
        high = MOST_CODE if bits == 8 else 15
        codes = np.clip(np.rint(steps), low, high).astype(np.int8 if bits == 8 else np.uint8)
        codes = codes.reshape(x.shape[0], -1)[:, : x.shape[1]]
        return cls(np.ascontiguousarray(codes), scales, minimums)

    def dequantize(self) -> Floats:
        """The values, [n, k] fp32."""
        codes = _in_groups(self.codes.astype(np.float32), self.group)
        values = codes * self.scales.astype(np.float32)[..., None]
        if self.minimums is not None:
            values = values + self.minimums.astype(np.float32)[..., None]
        return values.reshape(self.shape[0], -1)[:, : self.shape[1]]


def _in_groups(x: Floats, group: int) -> Floats:
    """[n, k] -> [n, ceil(k / group), group], with zeros behind the end of a row."""
    n, k = x.shape
    padded = np.zeros((n, -(-k // group) * group), np.float32)
    padded[:, :k] = x
    return padded.reshape(n, -1, group)


def quantize_rows(x: Reals, group: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Activations [m, k] fp32 -> (codes int8 [m, ceil(k / group), group], scales fp32 [m, ceil(k / group)]).

    The scale is the largest magnitude / 127, and codes are rounded to nearest even. A group with NaN or
    infinity has zeros for codes and NaN for its scale, so that all that it meets becomes NaN.
    """
    grouped = _in_groups(np.asarray(x, np.float32), group)
    largest = np.abs(grouped).max(-1)
    finite, some = np.isfinite(largest), largest >= LEAST_MAXIMUM
    with np.errstate(all="ignore"):
        inverse = np.where(some & finite, np.float32(MOST_CODE) / largest, np.float32(0))
        codes = np.where(finite[..., None], grouped * inverse[..., None], np.float32(0))
        scales = np.where(some, largest * (np.float32(1) / np.float32(MOST_CODE)), np.float32(0))
    scales = np.where(finite, scales, np.float32(np.nan))
    return np.rint(np.where(some[..., None], codes, 0)).astype(np.int8), scales.astype(np.float32)


def linear(x: Reals, weight: Groups) -> Floats:
    """x [m, k] fp32 times the transpose of weight [n, k] -> [m, n] fp32, as the CPU's kernels compute it.

    Codes of activations meet codes of weights, and their sums over a group are exact. The groups are added in
    ascending order, each by one fused multiply-add:

        sum = fma(sum of x_code * code, scale * x_scale, sum)
        sum = fma(minimum, x_scale * sum of x_code, sum)          with minimums
    """
    codes, scales = quantize_rows(x, weight.group)
    weight_codes = _in_groups(weight.codes.astype(np.float32), weight.group).astype(np.int32)
    weight_scales = weight.scales.astype(np.float32)
    out = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for g in range(codes.shape[1]):
        own = codes[:, g].astype(np.int32)
        dots = own @ weight_codes[:, g].T  # [m, n] int32
        factors = scales[:, g, None] * weight_scales[None, :, g]
        out = _fma(dots.astype(np.float32), factors, out)
        if weight.minimums is not None:
            sums = scales[:, g] * own.sum(-1).astype(np.float32)
            minimums = weight.minimums[:, g].astype(np.float32)
            out = _fma(np.broadcast_to(minimums, out.shape), sums[:, None], out)
    return out


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c of fp32, rounded once, but for rare ties beyond the bits of a long double."""
    return (a.astype(np.longdouble) * b.astype(np.longdouble) + c).astype(np.float32)
