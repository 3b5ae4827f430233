"""Returns the blocks that sequences no longer need, on the device, for runtimes that hand pages back.

    kept[b]     = min(ceil((committed_lens[b] + margin) / block_size), num_blocks[b])
                  0 if committed_lens[b] <= 0
    freed[b]    = block_table[b, kept[b] : num_blocks[b]], in order, then -1
    num_freed   = num_blocks - kept;   block_table[b, kept[b]:num_blocks[b]] = -1;   num_blocks = kept

A rejection itself needs none of this: it only lowers `committed`, and stale rows are overwritten before they
are read. margin is the room to keep past the committed tokens: 2 * gamma + 1 for a running sequence. A
sequence without committed tokens has ended and gives everything back.

Grid (B): one program takes one row.
Shapes: block_table [B, MB], num_blocks [B], committed_lens [B], freed [B, MB], num_freed [B]; all int32.
Mutates: block_table, num_blocks, freed, num_freed.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from ..base import interpreter  # noqa: F401
from ..base.library import operator

BLOCK = 256  # table entries at a time


@triton.jit(do_not_specialize=["table_width", "block_size", "margin"])
def rollback_kernel(
    block_table_ptr,  # [B, MB] int32, mutated
    num_blocks_ptr,  # [B] int32, mutated
    committed_lens_ptr,  # [B] int32
    freed_ptr,  # [B, MB] int32 out
    num_freed_ptr,  # [B] int32 out
    table_width,  # MB
    block_size,
    margin,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    committed_len = tl.load(committed_lens_ptr + sequence)
    num_blocks = tl.load(num_blocks_ptr + sequence)
    num_owned = tl.minimum(tl.maximum(num_blocks, 0), table_width)
    # length + margin may pass 2^31
    num_needed = (committed_len.to(tl.int64) + margin + block_size - 1) // block_size
    num_kept = tl.where(committed_len > 0, tl.minimum(num_needed, num_owned), 0).to(tl.int32)

    row = sequence.to(tl.int64) * table_width
    for first in range(0, table_width, BLOCK):
        index = first + tl.arange(0, BLOCK)
        entry_ptr = block_table_ptr + row + num_kept + index
        is_freed = index < num_owned - num_kept
        block_id = tl.load(entry_ptr, mask=is_freed, other=-1)
        tl.store(freed_ptr + row + index, block_id, mask=index < table_width)
        tl.debug_barrier()  # read by all before any is overwritten
        tl.store(entry_ptr, tl.full([BLOCK], -1, tl.int32), mask=is_freed)
    tl.store(num_freed_ptr + sequence, num_owned - num_kept)
    tl.store(num_blocks_ptr + sequence, num_kept)


@operator
def rollback(
    block_table: Annotated[Tensor, "int32 [B, MB] out"],
    num_blocks: Annotated[Tensor, "int32 [B] out"],
    committed_lens: Annotated[Tensor, "int32 [B]"],
    freed: Annotated[Tensor, "int32 [B, MB] out"],
    num_freed: Annotated[Tensor, "int32 [B] out"],
    block_size: int,
    margin: int,
) -> None:
    """Trims every row of block_table to what its sequence needs.

    block_size 16, margin 5, committed_lens [20], block_table [[7, 3, 9, 4]]: 25 positions need 2 blocks;
    block_table becomes [[7, 3, -1, -1]], freed [[9, 4, -1, -1]], num_freed [2].
    """
    batch, table_width = block_table.shape
    if block_size < 1:
        raise ValueError(f"rollback: block_size is {block_size}, expected at least 1")
    if margin < 0:
        raise ValueError(f"rollback: margin is {margin}, expected 0 or more positions")
    if batch == 0:
        return
    rollback_kernel[(batch,)](
        *(block_table, num_blocks, committed_lens, freed, num_freed, table_width, block_size, margin),
        BLOCK=BLOCK,
        num_warps=4,
    )
