"""What linear, gate_up_silu and embedding share: checks of weights, and weights held as codes of 8 or 4 bits.

A row of K inputs is cut into units of 64, the last one filled up by zeros. With codes c, the scale and the
minimum of their group, 32 or 16 inputs side by side,

    value = scale * c + minimum

in fp32, rounded once to the dtype of x. The product of a scale (11 bits) and a code (8 bits at most) is exact
in fp32, so that the sum is the only rounding before that one, with a fused multiply-add or without.

    weight  8 bits: int8 [N, 64 * units], in the order of the inputs
            4 bits: uint8 [N, 32 * units]; byte b of a unit holds input b in its low half, input 32 + b in
            its high half: both halves are used where they are unpacked, no lane hands a value to another
    scales  int32 [units * words, N]: two fp16 each, the first in the low half: of a group scale and minimum;
            without minimums the scales of a group of a unit's first half and of the same one of its second.
            Rows side by side: the programs of a tile read whole lines, and the 4 bytes that an asynchronous
            copy must have at least

A tile of a slice is one unit, as two tiles of 32 inputs: 32 bytes a row, and one scale for each where groups
have 32. Codes and scales pass through the same pipeline as weights that are elements.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.checks import check, check_computed_rightly

BLOCK_M = tl.constexpr(16)
SLICES = 4  # of a step, one per warp
UNIT = tl.constexpr(64)  # inputs of a row of codes that lie together: a step of a slice
HALF = tl.constexpr(32)  # inputs of one of its two tiles
GROUPS = (32, 16)  # inputs that may share a scale
SHARED, SHARED_ALONE = (
    80 << 10,
    128 << 10,
)  # bytes for a program's steps: two fit a chip, or one


@dataclass(frozen=True)
class WeightForm:
    """How a weight lies in memory: what a kernel is compiled for."""

    bits: int = 0  # 8 or 4; 0: elements
    group: int = 32
    has_minimums: bool = False

    @property
    def words(self) -> int:
        """Rows of scales for each unit."""
        return UNIT.value // self.group // (1 if self.has_minimums else 2)

    @property
    def unit_bytes(self) -> int:
        """Of the codes of a row's unit."""
        return UNIT.value * self.bits // 8

    def num_stages(self, rows: int, K: int, element_size: int, programs: int) -> int:
        """Of a program that has so many rows of a weight of codes, x of element_size. A step has fewer bytes
        than one of elements, so more of them are on their way: some 30 KiB of weights in a program.
        """
        step = UNIT.value * BLOCK_M.value * element_size + rows * (self.unit_bytes + 4 * self.words)
        buffers = (SHARED if programs > 132 else SHARED_ALONE) // (SLICES * step)
        return 1 + max(1, min(buffers, triton.cdiv(K, SLICES * UNIT.value)))

    @property
    def constexpr(self) -> tuple[int, int, bool] | None:
        """FORM of the kernels that read weights: bits, group, has_minimums; None of elements."""
        return (self.bits, self.group, self.has_minimums) if self.bits else None


def form_of(op: str, weight: Tensor, scales: Tensor | None, group: int, K: int) -> WeightForm:
    """Of a weight [N, K] that an operator is given, checked. Raises ValueError."""
    if scales is None:
        check(op, "weight", weight, (None, K))
        return WeightForm()
    if group not in GROUPS:
        raise ValueError(f"{op}: group is {group}, expected 32 or 16 inputs that share a scale")
    if weight.dtype not in (torch.int8, torch.uint8):
        raise ValueError(
            f"{op}: scales given for a weight of {weight.dtype}: they belong to int8 or uint8 codes"
        )
    bits, units = 8 if weight.dtype == torch.int8 else 4, -(-K // UNIT.value)
    plain, full = WeightForm(bits, group), WeightForm(bits, group, True)
    if bits == 4 and group != GROUPS[0]:
        raise ValueError(f"{op}: group is {group}, codes of 4 bits have groups of 32")
    form = plain if bits == 8 and scales.shape[0] == units * plain.words else full
    check(op, "weight", weight, (None, units * form.unit_bytes))
    check(op, "scales", scales, (units * form.words, weight.shape[0]), contiguous=False)
    if scales.shape[1] > 1 and scales.stride(1) != 1:
        raise ValueError(
            f"{op}: scales has strides {scales.stride()}: rows of the weight must lie side by side"
        )
    return form


def check_operands(op: str, x: Tensor, weight: Tensor, scales: Tensor | None, group: int) -> WeightForm:
    """x [T, K] and weight [N, K] can be read by the kernels: in rows of 16 * n bytes."""
    check_computed_rightly(op, "x", x)
    row_bytes = x.shape[1] * x.element_size()
    if row_bytes % 16 or row_bytes == 0:
        raise ValueError(
            f"{op}: K is {x.shape[1]}, rows have {row_bytes} bytes, expected a multiple of 16: pad K by zeros"
        )
    form = form_of(op, weight, scales, group, x.shape[1])
    if scales is None and weight.dtype != x.dtype:
        raise ValueError(f"{op}: weight is {weight.dtype}, expected {x.dtype}, or codes with scales")
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.data_ptr() % 16:
            raise ValueError(f"{op}: {name} starts at {tensor.data_ptr():#x}: align it to 16 bytes")
    return form


@torch.no_grad()
def multiply_many_rows(
    x: torch.Tensor, weight: torch.Tensor, product: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """product [T, N] = x @ weight.T + bias by torch, in the dtype of product."""
    if product.dtype == x.dtype:
        if bias is None:
            torch.mm(x, weight.t(), out=product)
        else:
            torch.addmm(bias, x, weight.t(), out=product)
        return
    if x.is_cuda:
        torch.mm(x, weight.t(), out_dtype=product.dtype, out=product)
    else:  # torch has no product of two dtypes there
        torch.mm(x.to(product.dtype), weight.to(product.dtype).t(), out=product)
    if bias is not None:
        product.add_(bias)


@triton.jit
def low_half(words):
    """fp32 of the fp16 in the low 16 bits of int32."""
    return words.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def high_half(words):
    """fp32 of the fp16 in the high 16 bits of int32."""
    return (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def load_two_tiles(
    x_ptrs,  # [SLICES, BLOCK_M, HALF]
    is_row,  # [1, BLOCK_M, 1]
    k,  # [SLICES, HALF]
    left,  # columns from this step on
    EVEN_K: tl.constexpr,
):
    """The columns of x that load_coded_tiles has values for."""
    keep = is_row
    keep_2 = is_row
    if not EVEN_K:
        keep = is_row & (k < left)[:, None, :]
        keep_2 = is_row & (k + HALF < left)[:, None, :]
    return tl.load(x_ptrs, mask=keep, other=0.0), tl.load(x_ptrs + HALF, mask=keep_2, other=0.0)


@triton.jit
def coded_pointers(
    weight_ptr,
    scales_ptr,
    scales_stride,
    n,  # [rows]
    unit,  # [SLICES]: of each slice in the first step
    K,
    FORM: tl.constexpr,
):
    """(codes [SLICES, HALF, rows]: the first bytes of a unit; scales [SLICES, 1, rows]: its first words)."""
    UNIT_BYTES: tl.constexpr = UNIT * FORM[0] // 8
    WORDS: tl.constexpr = UNIT // FORM[1] // (1 if FORM[2] else 2)
    rows = weight_ptr + n.to(tl.int64) * (tl.cdiv(K, UNIT) * UNIT_BYTES)
    codes = rows[None, None, :] + (unit[:, None] * UNIT_BYTES + tl.arange(0, HALF)[None, :])[:, :, None]
    words = scales_ptr + n[None, None, :] + (unit.to(tl.int64) * WORDS * scales_stride)[:, None, None]
    return codes, words


@triton.jit
def scaled(
    codes,  # fp32
    scales,
    minimums,
):
    """codes * scales + minimums: the product is exact, so that it may be fused with the sum."""
    return tl.fma(codes, tl.broadcast_to(scales, codes.shape), tl.broadcast_to(minimums, codes.shape))


@triton.jit
def each(
    numbers,  # [SLICES, 1 or 2, rows]: of the groups of HALF inputs
    FORM: tl.constexpr,
):
    """For each input: as they are where one serves all of them, else [SLICES, HALF, rows]."""
    if FORM[1] != HALF:
        wide = tl.broadcast_to(numbers[:, :, None, :], numbers.shape[0], 2, FORM[1], numbers.shape[2])
        numbers = tl.reshape(wide, numbers.shape[0], HALF, numbers.shape[2])
    return numbers


@triton.jit
def load_coded_tiles(
    code_ptrs,
    scale_ptrs,
    scales_stride,
    step,
    is_weight,  # [1, 1, rows]
    left,  # columns from this step on
    dtype: tl.constexpr,
    EVEN_K: tl.constexpr,
    SLICES: tl.constexpr,
    FORM: tl.constexpr,
):
    """The values of inputs 0..31 and 32..63 of each slice's unit, two tiles [SLICES, HALF, rows] of dtype."""
    UNIT_BYTES: tl.constexpr = UNIT * FORM[0] // 8
    WORDS: tl.constexpr = UNIT // FORM[1] // (1 if FORM[2] else 2)
    code_ptrs += step * (SLICES * UNIT_BYTES)
    scale_ptrs += step * (SLICES * WORDS) * scales_stride
    keep = is_weight
    if not EVEN_K:
        keep = is_weight & (tl.arange(0, SLICES) * UNIT < left)[:, None, None]
    if FORM[0] == 4:
        codes = tl.load(code_ptrs, mask=keep, other=0)
        first = (codes & 15).to(tl.float32)
        second = (codes >> 4).to(tl.float32)
    else:
        first = tl.load(code_ptrs, mask=keep, other=0).to(tl.float32)
        second = tl.load(code_ptrs + HALF, mask=keep, other=0).to(tl.float32)
    if FORM[1] != HALF:  # the words of both groups of a half at once, and each for its inputs
        scale_ptrs += (tl.arange(0, 2) * scales_stride)[None, :, None]
    word = tl.load(scale_ptrs, mask=keep, other=0)
    if FORM[2]:
        word_2 = tl.load(scale_ptrs + WORDS // 2 * scales_stride, mask=keep, other=0)
        first = scaled(first, each(low_half(word), FORM), each(high_half(word), FORM))
        second = scaled(second, each(low_half(word_2), FORM), each(high_half(word_2), FORM))
    else:
        first = first * each(low_half(word), FORM)
        second = second * each(high_half(word), FORM)
    return first.to(dtype), second.to(dtype)


@triton.jit
def load_coded_row(
    weight_ptr,
    scales_ptr,
    scales_stride,
    row,  # int64
    k,  # [columns]
    K,
    FORM: tl.constexpr,
):
    """Values of one row, fp32, not rounded further; zeros behind K."""
    keep = k < K
    units = tl.cdiv(K, UNIT)
    if FORM[0] == 4:
        code = tl.load(weight_ptr + row * (units * HALF) + k // UNIT * HALF + k % HALF, mask=keep, other=0)
        code = tl.where(k % UNIT >= HALF, code >> 4, code & 15)
    else:
        code = tl.load(weight_ptr + row * (units * UNIT) + k, mask=keep, other=0)
    if FORM[2]:
        words = tl.load(scales_ptr + (k // FORM[1]).to(tl.int64) * scales_stride + row, mask=keep, other=0)
        return code.to(tl.float32) * low_half(words) + high_half(words)
    word = k // UNIT * (HALF // FORM[1]) + k % HALF // FORM[1]
    words = tl.load(scales_ptr + word.to(tl.int64) * scales_stride + row, mask=keep, other=0)
    return code.to(tl.float32) * tl.where(k % UNIT >= HALF, high_half(words), low_half(words))
