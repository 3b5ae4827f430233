"""rollback, defined: each row of a block table trimmed to the blocks that its sequence needs."""

from __future__ import annotations

from torch import Tensor


def rollback(
    block_table: Tensor,  # [B, MB] int32, mutated
    num_blocks: Tensor,  # [B] int32, mutated
    committed_lens: Tensor,  # [B] int32; 0: nothing is needed
    freed: Tensor,  # [B, MB] int32, mutated: block ids in the order of the row, then -1
    num_freed: Tensor,  # [B] int32, mutated
    block_size: int,
    margin: int,
) -> None:
    """margin: positions to keep room for past the committed ones."""
    freed.fill_(-1)
    for b, committed_len in enumerate(committed_lens.tolist()):
        num_owned = min(max(int(num_blocks[b]), 0), block_table.shape[1])
        num_needed = -(-(committed_len + margin) // block_size) if committed_len > 0 else 0
        num_kept = min(num_needed, num_owned)
        given_back = block_table[b, num_kept:num_owned].clone()
        freed[b, : len(given_back)] = given_back
        block_table[b, num_kept:num_owned] = -1
        num_freed[b], num_blocks[b] = len(given_back), num_kept
