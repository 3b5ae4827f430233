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

import torch
import triton
import triton.language as tl

from ..base.library import on_their_device
from .attention_tile import LOG2_E, OPTIONS, attend, check_arguments


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
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [NB, BS, Hkv, D]
    v_ptr,  # [NB, BS, Hkv, D]
    block_table_ptr,  # [B, MB] int32
    context_lens_ptr,  # [B] int32
    cu_seqlens_q_ptr,  # [B+1] int32
    out_ptr,  # [T, Hq, D]
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
):
    tile = num_tiles - 1 - tl.program_id(0) // HKV
    head = tl.program_id(0) % HKV
    sequence = tl.program_id(1)
    context_len = tl.load(context_lens_ptr + sequence)
    first_token = tl.load(cu_seqlens_q_ptr + sequence)
    q_len = tl.load(cu_seqlens_q_ptr + sequence + 1) - first_token
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

    row = first_row + tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_D)
    is_row = row < num_rows
    row_position = tl.where(is_row, context_len - q_len + row // GROUP, -1)
    # row of [T, Hq]
    q_row = (first_token + row // GROUP).to(tl.int64) * (HKV * GROUP) + head * GROUP + row % GROUP
    inside = (col < D)[None, :]
    q = tl.load(q_ptr + q_row[:, None] * D + col[None, :], mask=is_row[:, None] & inside, other=0.0)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    table_ptr = block_table_ptr + sequence.to(tl.int64) * table_width
    highest, total, acc = attend(
        q,
        row_position,
        highest,
        total,
        acc,
        0,
        whole_end,
        table_ptr,
        k_ptr + head * D,
        v_ptr + head * D,
        num_blocks,
        log2_scale,
        HKV,
        D,
        BLOCK_SIZE,
        BLOCK_N,
        BLOCK_D,
        False,
    )
    highest, total, acc = attend(
        q,
        row_position,
        highest,
        total,
        acc,
        whole_end,
        end,
        table_ptr,
        k_ptr + head * D,
        v_ptr + head * D,
        num_blocks,
        log2_scale,
        HKV,
        D,
        BLOCK_SIZE,
        BLOCK_N,
        BLOCK_D,
        True,
    )
    out = acc / total[:, None]
    written = (row_position >= 0)[:, None] & inside
    tl.store(out_ptr + q_row[:, None] * D + col[None, :], out.to(out_ptr.dtype.element_ty), mask=written)


@on_their_device
def attention_prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    max_q_len: int,
) -> None:
    """Attention of the tokens of q to all that is stored before and with them."""
    shape = check_arguments(
        "attention_prefill", q, k_cache, v_cache, block_table, context_lens, cu_seqlens_q, out, max_q_len
    )
    if shape.is_empty:
        return
    tile = config(shape.head_dim, q.element_size())
    num_tiles = triton.cdiv(max_q_len * shape.group, tile.block_m)
    prefill_kernel[(num_tiles * shape.num_kv_heads, shape.batch)](
        q,
        k_cache,
        v_cache,
        block_table,
        context_lens,
        cu_seqlens_q,
        out,
        num_tiles,
        shape.table_width,
        shape.num_blocks,
        scale * LOG2_E,
        HKV=shape.num_kv_heads,
        GROUP=shape.group,
        D=shape.head_dim,
        BLOCK_SIZE=shape.block_size,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=shape.padded_dim,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **OPTIONS,
    )
