"""Matrices of codes on a device, as kernels read them: a checkpoint's own, or rounded to them here.

pearl_rt/reference/groups.py says what codes mean and how they are chosen, kernels/forward/weight_tile.py how
they lie. All of it is computed on the device that the matrix is for. Knows no layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn.functional import pad

from pearl_rt.errors import CheckpointError
from pearl_rt.kernels.forward.weight_tile import UNIT, WeightForm
from pearl_rt.reference.groups import GROUP, MOST_CODE, GroupForm, Groups, Outline

Tensor = torch.Tensor
Part: TypeAlias = Tensor | Groups | Outline
_AT_ONCE = 1 << 24  # weights that are rounded and packed at once


@dataclass(frozen=True)
class CodedMatrix:
    """A matrix [n, k] of codes; immutable."""

    codes: Tensor  # int8 [n, 64 * units], or uint8 [n, 32 * units]: codes of 4 bits
    scales: Tensor  # int32 [words, n], each two fp16; rows at any stride
    k: int
    group: int  # inputs that share a scale

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.k

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def first_rows(self, count: int) -> "CodedMatrix":
        """A view."""
        return CodedMatrix(self.codes[:count], self.scales[:, :count], self.k, self.group)

    @classmethod
    def pack(
        cls, parts: Mapping[str, Part], form: GroupForm, bits: int, device: torch.device
    ) -> "CodedMatrix":
        """The rows of parts, by name, one below the other. form: one that holds them all. bits: to which what
        is wider is rounded. On torch's meta device nothing is read.

        Raises CheckpointError for weights that have no code.
        """
        own = WeightForm(form.bits, form.group, form.has_minimums)
        n, k = sum(part.shape[0] for part in parts.values()), next(iter(parts.values())).shape[1]
        units, dtype = -(-k // UNIT.value), torch.int8 if own.bits == 8 else torch.uint8
        codes = torch.empty(n, units * own.unit_bytes, dtype=dtype, device=device)
        scales = torch.empty(units * own.words, n, dtype=torch.int32, device=device)
        start, step = 0, max(_AT_ONCE // k, 1)
        for name, part in parts.items():
            for first in range(0, 0 if device.type == "meta" else part.shape[0], step):
                rows = slice(first, min(first + step, part.shape[0]))
                coding = Coding.of(name, part, rows, bits, device)
                at = slice(start + first, start + rows.stop)
                codes[at], scales[:, at] = coding.packed(own)
            start += part.shape[0]
        return cls(codes, scales, k, form.group)


def values_of(part: Part) -> Tensor:
    """A part as elements: fp32 of codes, a tensor as it is."""
    if isinstance(part, Groups):
        return torch.from_numpy(part.dequantize())
    return torch.empty(part.shape, device="meta") if isinstance(part, Outline) else part.detach()


@dataclass(frozen=True)
class Coding:
    """Rows of codes as pearl_rt/reference/groups.py has them, on a device."""

    codes: Tensor  # int8 (8 bits) or uint8 (4 bits) [n, k]
    scales: Tensor  # fp16 [n, groups]
    minimums: Tensor | None  # fp16 [n, groups]
    group: int

    @classmethod
    def of(
        cls, name: str, part: Part, rows: "slice[int, int, None]", bits: int, device: torch.device
    ) -> "Coding":
        """Rows of a named part, rounded to so many bits if they are wider; 0: they are codes, and stay."""
        if isinstance(part, Groups):
            minimums = None if part.minimums is None else part.minimums[rows]
            own = Groups(part.codes[rows], part.scales[rows], minimums, part.group)
            if own.form.keeps_codes(bits):
                least = None if minimums is None else torch.from_numpy(minimums).to(device)
                scales = torch.from_numpy(own.scales).to(device)
                return cls(torch.from_numpy(own.codes).to(device), scales, least, own.group)
            part, rows = own, slice(0, own.shape[0])
        return cls.rounded(name, values_of(part)[rows].to(device, torch.float32), bits)

    @classmethod
    def rounded(cls, name: str, values: Tensor, bits: int) -> "Coding":
        """The nearest codes, with the arithmetic of Groups.quantize: the same bits."""
        n, k = values.shape
        num_groups = -(-k // GROUP)

        def grouped(behind: float) -> Tensor:
            """[n, num_groups, GROUP], with a number behind the end of a row."""
            return pad(values, (0, num_groups * GROUP - k), value=behind).view(n, -1, GROUP)

        most = torch.tensor(
            float(MOST_CODE if bits == 8 else 15), device=values.device
        )  # no scalar: it is divided by
        minimums = None
        if bits == 8:
            offset, least = torch.zeros_like(values[:, :1, None]), -MOST_CODE
            scales = (grouped(0.0).abs().amax(-1) / most).half()
        else:
            minimums, least = grouped(torch.inf).amin(-1).half(), 0
            offset = minimums.float()[..., None]
            scales = ((grouped(-torch.inf).amax(-1) - offset[..., 0]) / most).half().clamp_min(0)
        if not (scales.isfinite().all() and (minimums is None or minimums.isfinite().all())):
            raise CheckpointError(
                f"tensor {name!r} has weights that are NaN, infinite or beyond fp16, which cannot have "
                f"{bits} bits: load it with weights='auto'"
            )
        wide = scales.float()[..., None]
        steps = torch.where(wide > 0, (grouped(0.0) - offset) / wide, 0.0).round().clamp(least, int(most))
        codes = steps.to(torch.int8 if bits == 8 else torch.uint8).view(n, -1)[:, :k]
        return cls(codes, scales, minimums, GROUP)

    def packed(self, form: WeightForm) -> tuple[Tensor, Tensor]:
        """(codes, scales) of a CodedMatrix of that form, which holds these."""
        n, k = self.codes.shape
        units = -(-k // UNIT.value)
        num_groups = units * UNIT.value // form.group
        codes = pad(self.codes, (0, units * UNIT.value - k))
        if form.bits == 4:
            halves = codes.view(n, units, 2, -1)
            codes = (halves[:, :, 0] | halves[:, :, 1] << 4).view(n, -1)

        def spread(numbers: Tensor) -> Tensor:
            """[n, num_groups]: of groups of the form."""
            repeated = numbers.repeat_interleave(self.group // form.group, dim=1)
            return pad(repeated, (0, num_groups - repeated.shape[1]))

        pairs = spread(self.scales)
        if form.has_minimums:
            minimums = torch.zeros_like(self.scales) if self.minimums is None else self.minimums
            pairs = torch.stack([pairs, spread(minimums)], dim=-1)
        else:  # of a group of each half of a unit
            pairs = pairs.view(n, units, 2, -1).transpose(2, 3)
        words = pairs.reshape(n, -1, 2).contiguous().view(torch.int32)
        return codes.view(torch.int8) if form.bits == 8 else codes, words[..., 0].t()
