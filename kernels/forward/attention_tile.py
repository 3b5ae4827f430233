"""What decode and prefill attention share: the walk of one M tile over the pages of a sequence, and checks.

An M tile packs the query heads of one KV head: row = query token * GROUP + query head within the group. Row i
of q_len query tokens stands at position p = context_len - q_len + i and sees the keys of positions 0..p:

    q_len 3, context_len 5    keys 0 1 2 3 4
                       row 0       x x x . .
                       row 1       x x x x .
                       row 2       x x x x x

Knows neither how the KV range is divided among programs, nor where the result goes.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.checks import check_computed_rightly

LOG2_E = 1.4426950408889634
# Kernels of a head shape must give a row the same bits in each of their specialisations: no fused
# multiply-adds that come and go with the code around them.
OPTIONS = {"enable_fp_fusion": False}


class PagedBatch(NamedTuple):
    """Queries, where the keys that they see are stored, and the result."""

    q: Annotated[Tensor, "float [T, Hq, D]"]
    k_cache: Annotated[Tensor, "q [NB, BS, Hkv, D]"]
    v_cache: Annotated[Tensor, "q [NB, BS, Hkv, D]"]
    block_table: Annotated[Tensor, "int32 [B, MB]"]
    context_lens: Annotated[Tensor, "int32 [B]"]
    cu_seqlens_q: Annotated[Tensor, "int32 [B + 1]"]
    out: Annotated[Tensor, "q [T, Hq, D] out"]


@triton.jit
def extent_of(batch, sequence):
    """context_len, first query token and number of query tokens of a sequence."""
    context_len = tl.load(batch.context_lens + sequence)
    first_token = tl.load(batch.cu_seqlens_q + sequence)
    return context_len, first_token, tl.load(batch.cu_seqlens_q + sequence + 1) - first_token


@triton.jit
def place_rows(
    first_row,  # of the tile, among the packed rows of the sequence
    head,
    context_len,
    first_token,
    q_len,
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of a tile: positions (-1: no row) and rows of [T, Hq]."""
    row = first_row + tl.arange(0, BLOCK_M)
    row_position = tl.where(row < q_len * GROUP, context_len - q_len + row // GROUP, -1)
    q_row = (first_token + row // GROUP).to(tl.int64) * (HKV * GROUP) + head * GROUP + row % GROUP
    return row_position, q_row


@triton.jit
def load_rows(
    batch,  # PagedBatch
    first_row,  # of the tile, among those of the sequence
    head,
    context_len,
    first_token,
    q_len,
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of an M tile: positions (-1: no row), rows of [T, Hq] and queries."""
    row_position, q_row = place_rows(first_row, head, context_len, first_token, q_len, HKV, GROUP, BLOCK_M)
    col = tl.arange(0, BLOCK_D)
    is_row = first_row + tl.arange(0, BLOCK_M) < q_len * GROUP
    place = q_row[:, None] * D + col[None, :]
    q = tl.load(batch.q + place, mask=is_row[:, None] & (col < D)[None, :], other=0.0)
    return row_position, q_row, q


@triton.jit
def attend(
    q,  # [BLOCK_M, BLOCK_D] fp16/bf16/fp32
    row_position,  # [BLOCK_M] int32, -1: the row sees nothing
    highest,  # [BLOCK_M] fp32, the highest score so far, in base 2; -inf: none
    total,  # [BLOCK_M] fp32, sum of 2^(score - highest)
    acc,  # [BLOCK_M, BLOCK_D] fp32, sum of 2^(score - highest) * value
    begin,  # first key, a multiple of BLOCK_N
    end,  # one past the last key, at most context_len; a multiple of BLOCK_N unless MASKED
    table_ptr,  # [MB] int32, block ids of this sequence
    k_ptr,  # [NB, BLOCK_SIZE, HKV, D], moved to this KV head
    v_ptr,  # likewise
    num_blocks,  # NB
    log2_scale,  # fp32, scale * log2(e)
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,  # False: every row sees every key
):
    """(highest, total, acc) after the keys begin..end-1, taken BLOCK_N at a time at multiples of BLOCK_N.

    A row that sees no key of a block keeps all three as they were: its weights are 2^-inf = 0 and its
    rescaling is 2^0 = 1, or 2^-inf = 0 times the zeros that it started with.
    """
    key = tl.arange(0, BLOCK_N)
    col = tl.arange(0, BLOCK_D)
    # One table entry if a block of the cache holds all keys of a step, else one per key. They are read a step
    # ahead: a load of this step that had to wait for them would leave the loads of keys and values no
    # distance.
    lane = 0 if BLOCK_SIZE % BLOCK_N == 0 else key
    block_id = tl.load(table_ptr + (begin + lane) // BLOCK_SIZE, mask=begin + lane < end, other=0)
    for start in range(begin, end, BLOCK_N):
        position = start + key
        live = position < end
        tl.device_assert((block_id >= 0) & (block_id < num_blocks), "attention: block id out of range")
        slot = block_id.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        ahead = start + BLOCK_N + lane
        block_id = tl.load(table_ptr + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
        offset = slot[:, None] * (HKV * D) + col[None, :]
        inside = (col < D)[None, :]
        if MASKED:
            inside = live[:, None] & inside

        k = tl.load(k_ptr + offset, mask=inside, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * log2_scale
        if MASKED:
            score = tl.where(position[None, :] <= row_position[:, None], score, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, 1))
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # never -inf - -inf
        weight = tl.exp2(score - base[:, None])
        rescale = tl.exp2(highest - base)

        # Past the end the cache may hold NaN, and 0 * NaN is NaN: the mask of the load makes those values 0.
        v = tl.load(v_ptr + offset, mask=inside, other=0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        total = total * rescale + tl.sum(weight, 1)
        highest = new_highest
    return highest, total, acc


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one call, read from its tensors."""

    num_tokens: int
    num_heads: int
    head_dim: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    batch: int
    table_width: int

    @classmethod
    def of(cls, op: str, batch: PagedBatch, max_q_len: int) -> AttentionShape:
        """Raises ValueError for sizes that the kernels do not take."""
        check_computed_rightly(op, "q", batch.q)
        num_tokens, num_heads, head_dim = batch.q.shape
        if head_dim % 16 or not 16 <= head_dim <= 256:
            raise ValueError(f"{op}: head_dim is {head_dim}, expected a multiple of 16 from 16 to 256")
        num_blocks, block_size, num_kv_heads, _ = batch.k_cache.shape
        if block_size % 16 or not 16 <= block_size <= 256:
            raise ValueError(f"{op}: block_size is {block_size}, expected a multiple of 16 from 16 to 256")
        if num_kv_heads == 0 or num_heads == 0 or num_heads % num_kv_heads:
            raise ValueError(
                f"{op}: {num_heads} query heads on {num_kv_heads} KV heads, "
                "expected a multiple of the KV heads"
            )
        sequences, table_width = batch.block_table.shape
        if sequences > 65535:
            raise ValueError(f"{op}: {sequences} sequences, at most 65535 fit into a grid: split the batch")
        if max_q_len < 1:
            raise ValueError(f"{op}: max_q_len is {max_q_len}, expected at least 1")
        return cls(
            num_tokens, num_heads, head_dim, num_blocks, block_size, num_kv_heads, sequences, table_width
        )

    @property
    def group(self) -> int:
        """Query heads to a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def padded_dim(self) -> int:
        """head_dim, up to a power of two."""
        return triton.next_power_of_2(self.head_dim)

    @property
    def is_empty(self) -> bool:
        return 0 in (self.num_tokens, self.batch, self.table_width)
