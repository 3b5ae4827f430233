"""Keys and values in pages: which page belongs to which sequence, and the tensors that hold them.

Knows sizes and sequences by number; not tokens, models or kernels. A page (block) is `block_size` positions
of one sequence, in every layer at once. The allocator is the host's own; on the device there is a block
table, a row of page numbers for each sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pearl_rt.errors import ConfigError, ResourceError, gib

MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 16, 256


def check_block_size(block_size: int) -> int:
    """`block_size` if kernels can run with it: a multiple of 16, 16 to 256. Raises ConfigError."""
    if block_size % 16 or not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE:
        raise ConfigError(
            f"block_size {block_size} is not supported: pass a multiple of 16 from {MIN_BLOCK_SIZE} to "
            f"{MAX_BLOCK_SIZE}"
        )
    return block_size


class BlockAllocator:
    """Hands out pages by sequence: the pages of a sequence, in order, are its row of the block table.

    The page given back last is handed out first, so that a busy cache stays small.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f"num_blocks {num_blocks} holds nothing: pass 1 or more")
        self.num_blocks = num_blocks
        self.block_size = check_block_size(block_size)
        self._free = list(range(num_blocks - 1, -1, -1))
        self._held: dict[int, list[int]] = {}  # sequence -> its pages in order

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def blocks(self, sequence: int) -> tuple[int, ...]:
        """The pages of a sequence, in order; none for one that is not known."""
        return tuple(self._held.get(sequence, ()))

    def allocate(self, sequence: int, num_tokens: int) -> tuple[int, ...]:
        """Gives a sequence the pages it lacks for `num_tokens` tokens; all of its pages, in order.

        A sequence never shrinks here. Raises ResourceError, and changes nothing, if there are too few pages.
        """
        if num_tokens < 0:
            raise ValueError(f"num_tokens is {num_tokens}: a sequence has no fewer than 0")
        held = self._held.get(sequence, [])
        missing = -(-num_tokens // self.block_size) - len(held)
        if missing > len(self._free):
            raise ResourceError(
                f"the KV cache has {len(self._free)} of {self.num_blocks} blocks free, sequence {sequence} "
                f"needs {missing} more for {num_tokens} tokens (block_size {self.block_size}): end other "
                "sequences, or build it with more blocks"
            )
        held = held + [self._free.pop() for _ in range(missing)]
        self._held[sequence] = held
        return tuple(held)

    def trim(self, sequence: int, num_tokens: int) -> tuple[int, ...]:
        """Takes back the pages behind the first `num_tokens` tokens; returns those taken."""
        held = self._owned(sequence)
        kept = -(-num_tokens // self.block_size)
        taken = held[kept:]
        del held[kept:]
        self._free.extend(reversed(taken))
        return tuple(taken)

    def free(self, sequence: int) -> None:
        """Takes back all pages of a sequence. Raises ValueError for one that holds none: freed twice, or
        never allocated."""
        self._free.extend(reversed(self._owned(sequence)))
        del self._held[sequence]

    def _owned(self, sequence: int) -> list[int]:
        if sequence not in self._held:
            known = ", ".join(map(str, sorted(self._held))) or "none"
            raise ValueError(
                f"sequence {sequence} holds no blocks: it was freed before, or never allocated (holding: "
                f"{known})"
            )
        return self._held[sequence]


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a paged cache."""

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_block(self) -> int:
        """Keys and values of one page, all layers."""
        positions = 2 * self.num_layers * self.block_size
        return positions * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """The whole cache."""
        return self.num_blocks * self.bytes_per_block


class PagedKVCache:
    """The tensors, at fixed addresses: per layer k and v [num_blocks, block_size, num_kv_heads, head_dim].

    Memory is not cleared: rows behind a sequence's length are stale, and overwritten before they are read.
    """

    def __init__(self, shape: CacheShape, device: torch.device) -> None:
        self.shape = shape
        pages = (shape.num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
        self.keys: Sequence[torch.Tensor] = self._pages(pages, device)
        self.values: Sequence[torch.Tensor] = self._pages(pages, device)

    def _pages(self, pages: tuple[int, int, int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
        try:
            return tuple(
                torch.empty(pages, dtype=self.shape.dtype, device=device)
                for _ in range(self.shape.num_layers)
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise ResourceError(
                f"{gib(self.shape.num_bytes)} of KV cache ({self.shape.num_blocks} blocks of "
                f"{self.shape.bytes_per_block} bytes) cannot be had on {device}: lower max_model_len, or "
                "the number of sequences"
            ) from error
