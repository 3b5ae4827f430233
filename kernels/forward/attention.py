"""Paged causal attention of a few new tokens per sequence: decode and verify.

    out[t, h] = sum over s <= p of softmax_s(scale * <q[t, h], k[s, h // G]>) * v[s, h // G]

t is query token i of sequence b, at position p = context_len[b] - q_len[b] + i (causal, bottom-right);
G = Hq / Hkv; keys and values of position s lie in block block_table[b, s // BS], row s % BS.

The KV range is cut at fixed absolute positions: NUM_SHORT splits of SPLIT positions, then splits of
2 * SPLIT. Short ones fill the chip at contexts of a few thousand; long ones keep what the merge must read
small.
  1. grid (M tiles * Hkv * S, B): one program takes one split of one KV head for an M tile of packed rows
     (attention_tile), and writes per row the highest score, the sum of weights and the weighted sum of
     values. M tiles run fastest, so that those that read the same keys meet them in L2. Programs past the end
     return. Where a tile has one split, its program writes the result.
  2. The splits that a row sees are merged in the order of their index (attention_merge). With counters, by
     the program of a tile that arrives last: its fence and its atomic take less than a launch. Where a tile
     has so many rows that one program would merge for long, or there are no counters, by a second kernel,
     grid (merge tiles * Hkv, B).

Where the cuts lie, the blocks of keys within them and the tile shape depend on the head shape alone, and what
a row does not see leaves its sums untouched: a row's bits do not depend on q_len, on its batch, on the width
of the block table, or on which program merges. More than 64 query tokens go to attention_prefill, whose bits
are its own.

Shapes: q, out [T, Hq, D]; k_cache, v_cache [NB, BS, Hkv, D]; block_table [B, MB]; context_lens [B], with the
new tokens; cu_seqlens_q [B+1]; workspace uint8 [workspace_size()]; counters int32 [at least T * Hq] or None.
D a multiple of 16 up to 256, BS one of 16 to 256.
Dtypes: fp16/bf16/fp32 in and out, scores, softmax and sums in fp32, weights rounded to the dtype of v.
Requires: q_len <= max_q_len; q_len <= context_len <= MB * BS, or context_len 0: skipped; the KV of all
context_len positions stored and finite. Rows of a block past context_len may hold anything, and so may table
entries past it. Counters are all 0, and of one launch at a time: each launch leaves them so.
Mutates: out, where a token of a sequence lives (padding rows are not written), and workspace.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import check_workspace, interpreting
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from .attention_merge import (
    AT_ONCE,
    NUM_SHORT,
    SPLIT,
    Partials,
    first_position,
    merge_rows,
    num_splits,
    rows_at_once,
    splits_of,
)
from .attention_prefill import attention_prefill
from .attention_tile import LOG2_E, OPTIONS, AttentionShape, PagedBatch, attend, extent_of, load_rows

MAX_Q_LEN = 64  # beyond: attention_prefill


@dataclass(frozen=True)
class Config:
    """Tile of the first kernel. block_n divides SPLIT."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def config(group: int, head_dim: int, num_bytes: int) -> Config:
    """By head shape and bytes of an element, never by the number of rows.

    The M tile holds 8 query tokens where registers allow, so that a window of that size reads its keys once.
    """
    padded_dim = triton.next_power_of_2(head_dim)
    if num_bytes == 4:  # no tensor cores, for tests
        return Config(block_m=16, block_n=32, num_warps=4, num_stages=1)
    most_rows = min(64, max(16, 4096 // padded_dim))
    block_m = min(most_rows, max(16, triton.next_power_of_2(8 * group)))
    return Config(block_m, block_n=64 if padded_dim <= 128 else 32, num_warps=4, num_stages=4)


@triton.jit(do_not_specialize=["num_splits", "merges", "num_tiles", "table_width", "num_blocks"])
def split_kernel(
    batch,  # PagedBatch
    partials,  # Partials, out
    num_splits,  # S
    counters_ptr,  # [T * Hq] int32, or None: a second kernel merges
    merges,  # 0: likewise. One binary for the windows of both
    num_tiles,  # M tiles to a sequence
    table_width,  # MB
    num_blocks,  # NB
    log2_scale,  # scale * log2(e)
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,  # rows of a merge tile
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SHORT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    program = tl.program_id(0)
    tile = program % num_tiles
    head = program // num_tiles % HKV
    split = program // num_tiles // HKV
    sequence = tl.program_id(1)
    context_len, first_token, q_len = extent_of(batch, sequence)
    num_rows = q_len * GROUP
    first_row = tile * BLOCK_M
    if first_row >= num_rows:
        return
    # Keys from the split's first to the last one that the tile's last row sees.
    begin = first_position(split, SPLIT, NUM_SHORT)
    last_row = tl.minimum(first_row + BLOCK_M, num_rows) - 1
    num_seen = tl.minimum(context_len - q_len + last_row // GROUP + 1, table_width * BLOCK_SIZE)
    end = tl.minimum(first_position(split + 1, SPLIT, NUM_SHORT), num_seen)
    if begin >= end:
        return

    row_position, q_row, q = load_rows(
        batch, first_row, head, context_len, first_token, q_len, HKV, GROUP, D, BLOCK_M, BLOCK_D
    )
    col = tl.arange(0, BLOCK_D)
    inside = (col < D)[None, :]
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    highest, total, acc = attend(
        *(q, row_position, highest, total, acc, begin, end),
        batch.block_table + sequence.to(tl.int64) * table_width,
        *(batch.k_cache + head * D, batch.v_cache + head * D, num_blocks, log2_scale),
        *(HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, True),
    )

    num_used = splits_of(num_seen, SPLIT, NUM_SHORT)
    if num_used == 1:
        is_row = row_position >= 0
        out = acc / tl.where(is_row, total, 1.0)[:, None]
        place = batch.out + q_row[:, None] * D + col[None, :]
        tl.store(place, out.to(batch.out.dtype.element_ty), mask=is_row[:, None] & inside)
        return
    sees = row_position >= begin
    slot = q_row * num_splits + split
    tl.store(partials.sums + slot[:, None] * D + col[None, :], acc, mask=sees[:, None] & inside)
    tl.store(partials.stats + slot * 2, highest, mask=sees)
    tl.store(partials.stats + slot * 2 + 1, total, mask=sees)
    if counters_ptr is not None:
        if merges == 0:
            return
        # A tile is counted at its first row of [T, Hq], which no other has.
        place = (first_token + first_row // GROUP) * (HKV * GROUP) + head * GROUP + first_row % GROUP
        tl.debug_barrier()  # all threads have stored; the atomic then releases that, and acquires the others'
        arrived = tl.atomic_add(counters_ptr + place, 1, sem="acq_rel", scope="gpu")
        if arrived == num_used - 1:
            tl.store(counters_ptr + place, 0)
            for row in range(first_row, last_row + 1, BLOCK_R):
                merge_rows(
                    *(batch, partials, num_splits, num_used, row, head, context_len, first_token, q_len),
                    *(HKV, GROUP, D, BLOCK_R, BLOCK_D, SPLIT, NUM_SHORT, AT_ONCE),
                )


@triton.jit(do_not_specialize=["num_splits", "table_width"])
def merge_kernel(
    batch,  # PagedBatch
    partials,  # Partials
    num_splits,  # S
    table_width,  # MB
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SHORT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    head = tl.program_id(0) % HKV
    first_row = tl.program_id(0) // HKV * BLOCK_R
    context_len, first_token, q_len = extent_of(batch, tl.program_id(1))
    num_rows = q_len * GROUP
    if first_row >= num_rows:
        return
    # Of the M tile, which was written by its one split if it has no more.
    last_row = tl.minimum(first_row // BLOCK_M * BLOCK_M + BLOCK_M, num_rows) - 1
    num_seen = tl.minimum(context_len - q_len + last_row // GROUP + 1, table_width * BLOCK_SIZE)
    num_used = splits_of(num_seen, SPLIT, NUM_SHORT)
    if num_used <= 1:
        return
    merge_rows(
        *(batch, partials, num_splits, num_used, first_row, head, context_len, first_token, q_len),
        *(HKV, GROUP, D, BLOCK_R, BLOCK_D, SPLIT, NUM_SHORT, AT_ONCE),
    )


def merges_at_once(num_rows: int, block_r: int, splits: int) -> bool:
    """Whether the last program of a tile of num_rows rows merges: it does not wait for memory more than once
    more than the programs of merge_kernel, which are many."""
    return (triton.cdiv(num_rows, block_r) - 1) * triton.cdiv(splits, AT_ONCE) <= 1


def workspace_size(
    num_tokens: int, num_heads: int, head_dim: int, num_positions: int, max_q_len: int = MAX_Q_LEN
) -> int:
    """Bytes. num_positions: width of the block table * block size."""
    if max_q_len > MAX_Q_LEN:
        return 0
    return 4 * num_tokens * num_heads * num_splits(num_positions) * (head_dim + 2)


@operator
def attention(
    batch: PagedBatch,
    scale: float,
    max_q_len: int,
    workspace: Annotated[Tensor, "out"],
    counters: Annotated[Tensor | None, "int32 [C] out"] = None,
    pdl: bool = False,
) -> None:
    """Attention of the tokens of q to all that is stored before and with them.

    A sequence of 4 stored tokens and 2 new ones: context_lens [6], cu_seqlens_q [0, 2]; row 0 sees positions
    0..4, row 1 sees 0..5.

    counters: [at least T * Hq] int32, all 0, which the call leaves so; None: merged by a second kernel.
    pdl: see kernels/base/dependent.py.
    """
    if max_q_len > MAX_Q_LEN:
        attention_prefill(batch, scale, max_q_len, pdl)
        return
    shape = AttentionShape.of("attention", batch, max_q_len)
    num_positions = shape.table_width * shape.block_size
    num_bytes = workspace_size(shape.num_tokens, shape.num_heads, shape.head_dim, num_positions)
    check_workspace("attention", workspace, num_bytes)
    num_counters = shape.num_tokens * shape.num_heads
    if counters is not None and counters.numel() < num_counters:
        raise ValueError(
            f"attention: {counters.numel()} counters, needs {num_counters}, one for each row and head of q"
        )
    if shape.is_empty:
        return
    tile = config(shape.group, shape.head_dim, batch.q.element_size())
    splits = num_splits(num_positions)
    rows = max_q_len * shape.group
    partials = Partials(
        *workspace[:num_bytes]
        .view(torch.float32)
        .split([shape.num_tokens * shape.num_heads * splits * size for size in (shape.head_dim, 2)])
    )
    block_r = rows_at_once(shape.padded_dim, tile.block_m)
    constants = {
        "HKV": shape.num_kv_heads,
        "GROUP": shape.group,
        "D": shape.head_dim,
        "BLOCK_SIZE": shape.block_size,
        "BLOCK_M": tile.block_m,
        "BLOCK_R": block_r,
        "BLOCK_D": shape.padded_dim,
        "SPLIT": SPLIT,
        "NUM_SHORT": NUM_SHORT,
        "AT_ONCE": AT_ONCE,
        **dependent("attention", pdl),
        **OPTIONS,
    }
    num_tiles = triton.cdiv(rows, tile.block_m)
    merges = counters is not None and merges_at_once(min(rows, tile.block_m), block_r, splits)
    try:
        split_kernel[(num_tiles * shape.num_kv_heads * splits, shape.batch)](
            *(batch, partials, splits, counters, int(merges), num_tiles, shape.table_width),
            *(shape.num_blocks, scale * LOG2_E),
            **constants,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    except BaseException:
        if counters is not None and interpreting():  # a grid may end in its middle there
            counters.zero_()
        raise
    if not merges and splits > 1:
        grid = (triton.cdiv(rows, block_r) * shape.num_kv_heads, shape.batch)
        merge_kernel[grid](batch, partials, splits, shape.table_width, **constants, num_warps=4)
