"""The merge of attention's splits: what each wrote of a few packed rows, added in the order of their index.

    out = sum_s 2^(m_s - m) * acc_s / sum_s 2^(m_s - m) * total_s      m = max m_s, over the splits a row sees

Both kernels of attention merge by merge_rows. Its arithmetic is element by element and in order, and a split
that a row does not see leaves its sums as they were: the bits are the same in either kernel, in any tile, in
any company.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from .attention_tile import place_rows

SPLIT = 256  # positions
NUM_SHORT = 16
AT_ONCE = 9  # stages: splits that are asked for before the first is used, and one
BLOCK = 512  # values of a tile: 16 bytes a thread


class Partials(NamedTuple):
    """What splits leave for the merge."""

    sums: Tensor  # [T, Hq, S, D] fp32, weighted sums of values
    stats: Tensor  # [T, Hq, S, 2] fp32, highest score and sum of weights


def num_splits(num_positions: int) -> int:
    """Splits of that many positions."""
    units = triton.cdiv(num_positions, SPLIT)
    return units - max(units - NUM_SHORT, 0) // 2


def rows_at_once(padded_dim: int, block_m: int) -> int:
    """Packed rows of a merge tile, never more than those of an M tile."""
    return min(block_m, max(1, BLOCK // padded_dim))


@triton.jit
def first_position(split, SPLIT: tl.constexpr, NUM_SHORT: tl.constexpr):
    """Of a split."""
    return SPLIT * (split + tl.maximum(split - NUM_SHORT, 0))


@triton.jit
def splits_of(num_positions, SPLIT: tl.constexpr, NUM_SHORT: tl.constexpr):
    """How many splits hold the first num_positions positions."""
    units = tl.cdiv(num_positions, SPLIT)
    return units - tl.maximum(units - NUM_SHORT, 0) // 2


@triton.jit
def merge_rows(
    batch,  # PagedBatch
    partials,  # Partials
    num_splits,  # S
    num_used,  # splits to merge: all that a row sees
    first_row,  # of the tile, among the packed rows of the sequence
    head,
    context_len,
    first_token,
    q_len,
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows of the tile
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SHORT: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Writes out for the rows of one merge tile."""
    row_position, q_row = place_rows(first_row, head, context_len, first_token, q_len, HKV, GROUP, BLOCK_R)
    col = tl.arange(0, BLOCK_D)
    is_col = (col < D)[None, :]
    highest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for split in tl.range(0, num_used, num_stages=AT_ONCE):
        sees = row_position >= first_position(split, SPLIT, NUM_SHORT)
        slot = q_row * num_splits + split
        own_highest = tl.load(partials.stats + slot * 2, mask=sees, other=float("-inf"))
        own_total = tl.load(partials.stats + slot * 2 + 1, mask=sees, other=0.0)
        place = partials.sums + slot[:, None] * D + col[None, :]
        sums = tl.load(place, mask=sees[:, None] & is_col, other=0.0)
        new_highest = tl.maximum(highest, own_highest)
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # never -inf - -inf
        weight = tl.exp2(own_highest - base)
        rescale = tl.exp2(highest - base)
        acc = acc * rescale[:, None] + sums * weight[:, None]
        total = total * rescale + own_total * weight
        highest = new_highest
    is_row = row_position >= 0
    out = acc / tl.where(is_row, total, 1.0)[:, None]
    place = batch.out + q_row[:, None] * D + col[None, :]
    tl.store(place, out.to(batch.out.dtype.element_ty), mask=is_row[:, None] & is_col)
