"""Paged causal attention of many new tokens per sequence: prefill, a chunk or a whole prompt.

The formula, the shapes, the dtypes and what is required are those of attention, which comes here for more
than 64 query tokens. There is no workspace.

Grid (M tiles * Hkv, B): one program takes all keys that an M tile of packed rows (attention_tile) sees, first
the blocks that all its rows see whole, then those that need the causal mask. Tiles with the most keys start
first.

Blocks of keys lie at absolute positions and are summed in their order, whole or masked with the same
arithmetic: a row's bits do not depend on the chunk that it came in, on its batch, or on the width of the
block table.
Mutates: out, where a token of a sequence lives.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ..base.dependent import await_previous, dependent
from ..base.library import on_their_device
from .attention_tile import LOG2_E, OPTIONS, AttentionShape, PagedBatch, attend, extent_of, load_rows


@dataclass(frozen=True)
class Config:
    """Tile of the kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def config(head_dim: int, num_bytes: int) -> Config:
    """By head size and bytes of an element, never by the number of rows.

    With 64 keys a block, head_dim 128 spills registers on sm_80 and head_dim 64 on sm_100.
    """
    if num_bytes == 4:  # no tensor cores, for tests
        return Config(block_m=32, block_n=32, num_warps=4, num_stages=1)
    if head_dim <= 64:
        return Config(block_m=128, block_n=128, num_warps=8, num_stages=3)
    if head_dim <= 128:
        return Config(block_m=128, block_n=32, num_warps=8, num_stages=3)
    return Config(block_m=64, block_n=32, num_warps=4, num_stages=2)


@triton.jit(do_not_specialize=["num_tiles", "table_width", "num_blocks"])
def prefill_kernel(
    batch,  # PagedBatch
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
    PDL: tl.constexpr,
):
    await_previous(PDL)
    tile = num_tiles - 1 - tl.program_id(0) // HKV
    head = tl.program_id(0) % HKV
    sequence = tl.program_id(1)
    context_len, first_token, q_len = extent_of(batch, sequence)
    num_rows = q_len * GROUP
    first_row = tile * BLOCK_M
    if first_row >= num_rows:
        return
    first_position = context_len - q_len + first_row // GROUP
    last_token = (tl.minimum(first_row + BLOCK_M, num_rows) - 1) // GROUP
    end = tl.minimum(context_len - q_len + last_token + 1, table_width * BLOCK_SIZE)
    if end <= 0:
        return
    whole_end = tl.minimum(tl.maximum(first_position + 1, 0), end) // BLOCK_N * BLOCK_N

    row_position, q_row, q = load_rows(
        batch, first_row, head, context_len, first_token, q_len, HKV, GROUP, D, BLOCK_M, BLOCK_D
    )
    inside = (tl.arange(0, BLOCK_D) < D)[None, :]
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    table_ptr = batch.block_table + sequence.to(tl.int64) * table_width
    highest, total, acc = attend(
        *(q, row_position, highest, total, acc, 0, whole_end),
        *(table_ptr, batch.k_cache + head * D, batch.v_cache + head * D, num_blocks, log2_scale),
        *(HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, False),
    )
    highest, total, acc = attend(
        *(q, row_position, highest, total, acc, whole_end, end),
        *(table_ptr, batch.k_cache + head * D, batch.v_cache + head * D, num_blocks, log2_scale),
        *(HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, True),
    )
    out = acc / total[:, None]
    written = (row_position >= 0)[:, None] & inside
    tl.store(
        batch.out + q_row[:, None] * D + tl.arange(0, BLOCK_D)[None, :],
        out.to(batch.out.dtype.element_ty),
        mask=written,
    )


@on_their_device
def attention_prefill(batch: PagedBatch, scale: float, max_q_len: int, pdl: bool = False) -> None:
    """Attention of the tokens of q to all that is stored before and with them. pdl: see
    kernels/base/dependent.py.
    """
    shape = AttentionShape.of("attention_prefill", batch, max_q_len)
    if shape.is_empty:
        return
    tile = config(shape.head_dim, batch.q.element_size())
    num_tiles = triton.cdiv(max_q_len * shape.group, tile.block_m)
    prefill_kernel[(num_tiles * shape.num_kv_heads, shape.batch)](
        *(batch, num_tiles, shape.table_width, shape.num_blocks, scale * LOG2_E),
        HKV=shape.num_kv_heads,
        GROUP=shape.group,
        D=shape.head_dim,
        BLOCK_SIZE=shape.block_size,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=shape.padded_dim,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **dependent("attention_prefill", pdl),
        **OPTIONS,
    )
