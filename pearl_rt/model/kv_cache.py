"""Keys and values in pages: the sizes of a cache, and the tensors that hold it.

Knows sizes only. A page (block) is `block_size` positions of one sequence, in every layer at once. A block
table on the device has a row of page numbers for each sequence.
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
