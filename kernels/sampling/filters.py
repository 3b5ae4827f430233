"""Thresholds for min-p, top-k and top-p: one fp32 per row on the raw logits. A token is kept iff logit >=
threshold.

    min_p   keep x >= max + log(min_p) * temperature           i.e. p(x) >= min_p * p(argmax)
    top_k   of all, keep the k largest, and what ties with the last of them
    top_p   keep x while the mass of strictly larger logits is < top_p of what min_p and top_k left
    threshold = the largest of the three; -inf where a row is greedy, cannot be used, or has no filter on

in vLLM's order: temperature, min_p, top_k, top_p. No sort: the threshold is found digit by digit, four
bits of an order-preserving integer of the logit at a time. Grids from shapes only:

    top_kernel        (rows, tiles)  one tile's maximum
    digit_kernel      (rows, tiles)  8 launches for top_k, 8 for top_p: one tile's count (mass) per digit,
                                     among the entries that share the digits found so far; every program
                                     chooses the digit before this one from the tiles' sums
    threshold_kernel  (rows,)

A filter whose tensor is None costs no launches. Rows whose filter is off return at once. Masses are fp32
within a tile and fp64 over tiles, added in one order: the same bits whatever the number of rows.

logits [R, V] fp32, fp16 or bf16, rows at any stride; temperature [R] fp32; top_k [R] int32 (off unless 1
.. V - 1), top_p [R] fp32 (off unless < 1), min_p [R] fp32 (off unless > 0), or None; thresholds [R] fp32,
out. Mutates thresholds and the workspace.

    logits [1, 4] = [1, 3, 3, 0], top_k [2]  ->  thresholds [3]
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base.library import operator
from ..base.workspace import Part, carve, num_bytes
from .noise import EXACT, exp, inverse_temperature, log
from .sample import INFINITY, is_usable, row_offset

PASSES = 8  # digits of four bits, highest first
STEPS = tl.constexpr(17)  # what is known before each of 2 * PASSES launches; the last: the k-th largest logit


@triton.jit
def rank_of(x):
    """uint32 that orders as fp32 does; both zeros alike."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -1, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(rank):
    """The fp32 of a rank."""
    bits = rank.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, bits ^ -1).to(tl.float32, bitcast=True)


@triton.jit
def row_top(top_ptr, row, T, TP: tl.constexpr):
    """A row's maximum, from its tiles."""
    tile = tl.arange(0, TP)
    return tl.max(tl.load(top_ptr + row * T + tile, mask=tile < T, other=-INFINITY), axis=0)


@triton.jit
def descend(
    prefix_ptr,  # [R, STEPS] int32: the digits found, left-aligned
    above_ptr,  # [R, STEPS] fp64: weight of what is larger
    goal_ptr,  # [R] fp64: top_p times the mass
    weight_ptr,  # [2, R, T, 16] fp32
    row,
    share,  # top_k or top_p of the row
    R,
    T,
    PHASE: tl.constexpr,  # 0: top_k, 1: top_p
    DIGIT: tl.constexpr,  # 1 .. 8
    TP: tl.constexpr,
):
    """prefix (uint32), above and goal before pass DIGIT of a phase, from the pass before and its tiles."""
    last = PHASE * 8 + DIGIT - 1
    prefix = tl.load(prefix_ptr + row * STEPS + last).to(tl.uint32, bitcast=True)
    above = tl.load(above_ptr + row * STEPS + last)
    tile = tl.arange(0, TP)[:, None]
    digit = tl.arange(0, 16)
    place = (((last % 2) * R + row).to(tl.int64) * T + tile) * 16 + digit[None, :]
    weights = tl.load(weight_ptr + place, mask=tile < T, other=0.0).to(tl.float64)
    weights = tl.sum(weights, axis=0)  # [16]
    if PHASE == 0:
        goal = share.to(tl.float64)
    elif DIGIT == 1:  # at least the largest logit
        goal = tl.maximum(share.to(tl.float64) * tl.sum(weights, axis=0), 1e-30)
    else:
        goal = tl.load(goal_ptr + row)
    larger = digit[None, :] > digit[:, None]
    before = above + tl.sum(tl.where(larger, weights[None, :], 0.0), axis=1)  # of each digit
    chosen = tl.max(tl.where(before + weights >= goal, digit, 0), axis=0)
    above = tl.sum(tl.where(digit == chosen, before, 0.0), axis=0)
    return prefix | (chosen.to(tl.uint32) << (32 - 4 * DIGIT)), above, goal


@triton.jit
def floor_of(top, temperature, min_p_ptr, row):
    """min_p's threshold; -inf if it is off."""
    floor = top - INFINITY
    if min_p_ptr is not None:
        share = tl.load(min_p_ptr + row)
        lowest = top + log(tl.maximum(share, 1.1754943508222875e-38)) * temperature
        floor = tl.where(share > 0.0, tl.minimum(lowest, top), floor)
    return floor


@triton.jit
def top_k_of(top_k_ptr, row, V):
    """0 if it is off."""
    k = tl.load(top_k_ptr + row)
    return tl.where((k > 0) & (k < V), k, 0)


@triton.jit
def top_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    top_ptr,  # [R, T] fp32, out: of a tile; +inf if an entry cannot be used
    V,
    T,
    TILE: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + row_offset(row, stride) + column, mask=column < V, other=-INFINITY).to(
        tl.float32
    )
    tl.store(top_ptr + row * T + tl.program_id(1), tl.max(tl.where(x < INFINITY, x, INFINITY), axis=0))


@triton.jit
def digit_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    temperature_ptr,  # [R]
    top_k_ptr,  # [R] or None
    top_p_ptr,  # [R] or None
    min_p_ptr,  # [R] or None
    top_ptr,  # [R, T]
    prefix_ptr,  # [R, STEPS] int32, mutated
    above_ptr,  # [R, STEPS] fp64, mutated
    goal_ptr,  # [R] fp64, mutated
    weight_ptr,  # [2, R, T, 16] fp32, mutated
    R,
    V,
    T,
    PHASE: tl.constexpr,
    DIGIT: tl.constexpr,
    TP: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0)
    tile = tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top = row_top(top_ptr, row, T, TP)
    if ((temperature > 0.0) & is_usable(top)) == 0:
        return
    known = prefix_ptr + row * STEPS
    floor = floor_of(top, temperature, min_p_ptr, row)
    if PHASE == 0:
        share = top_k_of(top_k_ptr, row, V)
        wanted = share > 0
    else:
        share = tl.load(top_p_ptr + row)
        wanted = share < 1.0
        if top_k_ptr is not None:
            k = top_k_of(top_k_ptr, row, V)
            if DIGIT == 0:
                kth, _above, _goal = descend(
                    prefix_ptr, above_ptr, goal_ptr, weight_ptr, row, k, R, T, 0, 8, TP
                )
                if tile == 0:
                    tl.store(known + STEPS - 1, kth.to(tl.int32, bitcast=True))
            else:
                kth = tl.load(known + STEPS - 1).to(tl.uint32, bitcast=True)
            floor = tl.where(k > 0, tl.maximum(floor, value_of(kth)), floor)
    if wanted == 0:
        return

    column = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + row_offset(row, stride) + column, mask=column < V, other=-INFINITY).to(
        tl.float32
    )
    rank = rank_of(x)
    among = column < V
    step = PHASE * 8 + DIGIT
    if DIGIT == 0:
        if tile == 0:
            tl.store(known + step, 0)
            tl.store(above_ptr + row * STEPS + step, 0.0)
    else:
        prefix, above, goal = descend(
            prefix_ptr, above_ptr, goal_ptr, weight_ptr, row, share, R, T, PHASE, DIGIT, TP
        )
        if tile == 0:
            tl.store(known + step, prefix.to(tl.int32, bitcast=True))
            tl.store(above_ptr + row * STEPS + step, above)
            if step == 9:
                tl.store(goal_ptr + row, goal)
        among = among & ((rank >> (32 - 4 * DIGIT)) == (prefix >> (32 - 4 * DIGIT)))
    if PHASE == 0:
        weight = tl.where(among, 1.0, 0.0)
    else:
        weight = exp((x - top) * inverse_temperature(temperature))
        weight = tl.where(among & (x >= floor), weight, 0.0)
    digit = ((rank >> (28 - 4 * DIGIT)) & 15).to(tl.int32)
    lane = tl.arange(0, 16)
    weights = tl.sum(tl.where(digit[:, None] == lane[None, :], weight[:, None], 0.0), axis=0)
    tl.store(weight_ptr + (((step % 2) * R + row).to(tl.int64) * T + tile) * 16 + lane, weights)


@triton.jit
def threshold_kernel(
    temperature_ptr,  # [R]
    top_k_ptr,  # [R] or None
    top_p_ptr,  # [R] or None
    min_p_ptr,  # [R] or None
    top_ptr,  # [R, T]
    prefix_ptr,  # [R, STEPS]
    above_ptr,  # [R, STEPS]
    goal_ptr,  # [R]
    weight_ptr,  # [2, R, T, 16]
    thresholds_ptr,  # [R] fp32, out
    R,
    V,
    T,
    TP: tl.constexpr,
):
    row = tl.program_id(0)
    temperature = tl.load(temperature_ptr + row)
    top = row_top(top_ptr, row, T, TP)
    filtering = (temperature > 0.0) & is_usable(top)
    threshold = floor_of(top, temperature, min_p_ptr, row)
    if top_k_ptr is not None:
        k = top_k_of(top_k_ptr, row, V)
        if top_p_ptr is None:
            kth, _above, _goal = descend(prefix_ptr, above_ptr, goal_ptr, weight_ptr, row, k, R, T, 0, 8, TP)
        else:
            kth = tl.load(prefix_ptr + row * STEPS + STEPS - 1).to(tl.uint32, bitcast=True)
        threshold = tl.where(k > 0, tl.maximum(threshold, value_of(kth)), threshold)
    if top_p_ptr is not None:
        share = tl.load(top_p_ptr + row)
        last, _above, _goal = descend(prefix_ptr, above_ptr, goal_ptr, weight_ptr, row, share, R, T, 1, 8, TP)
        threshold = tl.where(share < 1.0, tl.maximum(threshold, value_of(last)), threshold)
    tl.store(thresholds_ptr + row, tl.where(filtering, threshold, -INFINITY))


def _tile(vocab: int) -> int:
    return min(1024, max(16, triton.next_power_of_2(vocab)))


def _parts(rows: int, vocab: int) -> list[Part]:
    tiles = triton.cdiv(vocab, _tile(vocab))
    return [
        ((rows, tiles), torch.float32),
        ((rows, STEPS.value), torch.int32),
        ((rows, STEPS.value), torch.float64),
        ((rows,), torch.float64),
        ((2, rows, tiles, 16), torch.float32),
    ]


def workspace_size(rows: int, vocab: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(rows, vocab))


@operator
def filters(
    logits: Annotated[Tensor, "float [R, V] rows"],
    temperature: Annotated[Tensor, "fp32 [R]"],
    top_k: Annotated[Tensor | None, "int32 [R]"],
    top_p: Annotated[Tensor | None, "fp32 [R]"],
    min_p: Annotated[Tensor | None, "fp32 [R]"],
    thresholds: Annotated[Tensor, "fp32 [R] out"],
    workspace: Annotated[Tensor, "out"],
) -> None:
    """One threshold per row of logits; see above."""
    rows, vocab = logits.shape
    top, *found = carve("filters", workspace, _parts(rows, vocab))
    if rows == 0:
        return
    tile, tiles = _tile(vocab), top.shape[1]
    padded, given = triton.next_power_of_2(tiles), (temperature, top_k, top_p, min_p, top, *found)
    grid = (rows, tiles)
    top_kernel[grid](logits, logits.stride(0), top, vocab, tiles, tile, **EXACT)
    for phase, wanted in enumerate((top_k, top_p)):
        for digit in range(PASSES if wanted is not None else 0):
            digit_kernel[grid](
                logits, logits.stride(0), *given, rows, vocab, tiles, phase, digit, padded, tile, **EXACT
            )
    threshold_kernel[(rows,)](*given, thresholds, rows, vocab, tiles, padded, **EXACT)
