"""Paged causal attention of a few new tokens per sequence: decode and verify.

    out[t, h] = sum over s <= p of softmax_s(scale * <q[t, h], k[s, h // G]>) * v[s, h // G]

t is query token i of sequence b, at position p = context_len[b] - q_len[b] + i (causal, bottom-right);
G = Hq / Hkv; keys and values of position s lie in block block_table[b, s // BS], row s % BS.

Two kernels. The KV range is cut at fixed absolute positions: NUM_SHORT splits of SPLIT positions, then splits
of 2 * SPLIT. Short ones fill the chip at contexts of a few thousand; long ones keep what the merge must read
small.
  1. grid (M tiles * Hkv * S, B): one program takes one split of one KV head for an M tile of packed rows
     (attention_tile), and writes per row the highest score, the sum of weights and the weighted sum of
     values. M tiles run fastest, so that those that read the same keys meet them in L2. Programs past the end
     return.
  2. grid (max_q_len * Hq, B): one program merges the splits that one row sees, in the order of their index.

Where the cuts lie, the blocks of keys within them and the tile shape depend on the head shape alone, and what
a row does not see leaves its sums untouched: a row's bits do not depend on q_len, on its batch, or on the
width of the block table. More than 64 query tokens go to attention_prefill, whose bits are its own.

Shapes: q, out [T, Hq, D]; k_cache, v_cache [NB, BS, Hkv, D]; block_table [B, MB]; context_lens [B], with the
new tokens; cu_seqlens_q [B+1]; workspace uint8 [workspace_size()]. D a multiple of 16 up to 256, BS one of 16
to 256.
Dtypes: fp16/bf16/fp32 in and out, scores, softmax and sums in fp32, weights rounded to the dtype of v.
Requires: q_len <= max_q_len; q_len <= context_len <= MB * BS, or context_len 0: skipped; the KV of all
context_len positions stored and finite. Rows of a block past context_len may hold anything, and so may table
entries past it.
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

from ..base.checks import check_workspace
from ..base.library import operator
from .attention_prefill import attention_prefill
from .attention_tile import LOG2_E, OPTIONS, AttentionShape, PagedBatch, attend, extent_of, load_rows

MAX_Q_LEN = 64  # beyond: attention_prefill
SPLIT = 256  # positions
NUM_SHORT = 16
MERGE_BLOCK = 32  # splits read at a time by the merge


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


@triton.jit
def _first_position(split, SPLIT: tl.constexpr, NUM_SHORT: tl.constexpr):
    return SPLIT * (split + tl.maximum(split - NUM_SHORT, 0))


@triton.jit(do_not_specialize=["num_splits", "num_tiles", "table_width", "num_blocks"])
def split_kernel(
    batch,  # PagedBatch
    sums_ptr,  # [T, Hq, S, D] fp32 out, weighted sums of values
    stats_ptr,  # [T, Hq, S, 2] fp32 out, highest score and sum of weights
    num_splits,  # S
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
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SHORT: tl.constexpr,
):
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
    begin = _first_position(split, SPLIT, NUM_SHORT)
    last_token = (tl.minimum(first_row + BLOCK_M, num_rows) - 1) // GROUP
    end = tl.minimum(_first_position(split + 1, SPLIT, NUM_SHORT), context_len - q_len + last_token + 1)
    end = tl.minimum(end, table_width * BLOCK_SIZE)
    if begin >= end:
        return

    row_position, q_row, q = load_rows(
        batch, first_row, head, context_len, first_token, q_len, HKV, GROUP, D, BLOCK_M, BLOCK_D
    )
    inside = (tl.arange(0, BLOCK_D) < D)[None, :]
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    highest, total, acc = attend(
        *(q, row_position, highest, total, acc, begin, end),
        batch.block_table + sequence.to(tl.int64) * table_width,
        *(batch.k_cache + head * D, batch.v_cache + head * D, num_blocks, log2_scale),
        *(HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, True),
    )

    sees = row_position >= begin
    slot = q_row * num_splits + split
    col = tl.arange(0, BLOCK_D)
    tl.store(sums_ptr + slot[:, None] * D + col[None, :], acc, mask=sees[:, None] & inside)
    tl.store(stats_ptr + slot * 2, highest, mask=sees)
    tl.store(stats_ptr + slot * 2 + 1, total, mask=sees)


@triton.jit(do_not_specialize=["num_splits", "table_width"])
def merge_kernel(
    batch,  # PagedBatch
    sums_ptr,  # [T, Hq, S, D] fp32
    stats_ptr,  # [T, Hq, S, 2] fp32
    num_splits,  # S
    table_width,  # MB
    HQ: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SHORT: tl.constexpr,
    MERGE_BLOCK: tl.constexpr,
):
    token = tl.program_id(0) // HQ
    head = tl.program_id(0) % HQ
    sequence = tl.program_id(1)
    context_len, first_token, q_len = extent_of(batch, sequence)
    num_seen = tl.minimum(context_len - q_len + token + 1, table_width * BLOCK_SIZE)
    if (token >= q_len) | (num_seen <= 0):
        return
    units = tl.cdiv(num_seen, SPLIT)
    num_used = units - tl.maximum(units - NUM_SHORT, 0) // 2

    row = (first_token + token).to(tl.int64) * HQ + head
    col = tl.arange(0, BLOCK_D)
    highest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, num_used, MERGE_BLOCK):
        split = first + tl.arange(0, MERGE_BLOCK)
        is_used = split < num_used
        slot = row * num_splits + split
        split_highest = tl.load(stats_ptr + slot * 2, mask=is_used, other=float("-inf"))
        split_total = tl.load(stats_ptr + slot * 2 + 1, mask=is_used, other=0.0)
        inside = is_used[:, None] & (col < D)[None, :]
        sums = tl.load(sums_ptr + slot[:, None] * D + col[None, :], mask=inside, other=0.0)
        new_highest = tl.maximum(highest, tl.max(split_highest, 0))
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weight = tl.exp2(split_highest - base)
        rescale = tl.exp2(highest - base)
        acc = acc * rescale + tl.sum(sums * weight[:, None], 0)
        total = total * rescale + tl.sum(split_total * weight, 0)
        highest = new_highest
    out = acc / total
    tl.store(batch.out + row * D + col, out.to(batch.out.dtype.element_ty), mask=col < D)


def num_splits(num_positions: int) -> int:
    """Splits of that many positions."""
    units = triton.cdiv(num_positions, SPLIT)
    return units - max(units - NUM_SHORT, 0) // 2


def workspace_size(
    num_tokens: int, num_heads: int, head_dim: int, num_positions: int, max_q_len: int = MAX_Q_LEN
) -> int:
    """Bytes. num_positions: width of the block table * block size."""
    if max_q_len > MAX_Q_LEN:
        return 0
    return 4 * num_tokens * num_heads * num_splits(num_positions) * (head_dim + 2)


@operator
def attention(batch: PagedBatch, scale: float, max_q_len: int, workspace: Annotated[Tensor, "out"]) -> None:
    """Attention of the tokens of q to all that is stored before and with them.

    A sequence of 4 stored tokens and 2 new ones: context_lens [6], cu_seqlens_q [0, 2]; row 0 sees positions
    0..4, row 1 sees 0..5.
    """
    if max_q_len > MAX_Q_LEN:
        attention_prefill(batch, scale, max_q_len)
        return
    shape = AttentionShape.of("attention", batch, max_q_len)
    num_positions = shape.table_width * shape.block_size
    num_bytes = workspace_size(shape.num_tokens, shape.num_heads, shape.head_dim, num_positions)
    check_workspace("attention", workspace, num_bytes)
    if shape.is_empty:
        return
    tile = config(shape.group, shape.head_dim, batch.q.element_size())
    splits = num_splits(num_positions)
    num_tiles = triton.cdiv(max_q_len * shape.group, tile.block_m)
    partials = workspace[:num_bytes].view(torch.float32)
    sums, stats = partials.split(
        [shape.num_tokens * shape.num_heads * splits * size for size in (shape.head_dim, 2)]
    )
    split_kernel[(num_tiles * shape.num_kv_heads * splits, shape.batch)](
        *(batch, sums, stats, splits, num_tiles, shape.table_width, shape.num_blocks, scale * LOG2_E),
        HKV=shape.num_kv_heads,
        GROUP=shape.group,
        D=shape.head_dim,
        BLOCK_SIZE=shape.block_size,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=shape.padded_dim,
        SPLIT=SPLIT,
        NUM_SHORT=NUM_SHORT,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **OPTIONS,
    )
    merge_kernel[(max_q_len * shape.num_heads, shape.batch)](
        *(batch, sums, stats, splits, shape.table_width),
        HQ=shape.num_heads,
        D=shape.head_dim,
        BLOCK_SIZE=shape.block_size,
        BLOCK_D=shape.padded_dim,
        SPLIT=SPLIT,
        NUM_SHORT=NUM_SHORT,
        MERGE_BLOCK=MERGE_BLOCK,
        num_warps=4,
        **OPTIONS,
    )
