"""Pages: handed out once, taken back once, counted to the byte, and refused by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pearl_rt.device.pair_sizes import held_bytes
from pearl_rt.errors import ConfigError, ResourceError
from pearl_rt.model.kv_cache import BlockAllocator, CacheShape, PagedKVCache

CPU = torch.device("cpu")


def shape_of(**changes: object) -> CacheShape:
    sizes = {"num_layers": 3, "num_blocks": 35, "block_size": 16, "num_kv_heads": 2, "head_dim": 24}
    return CacheShape(**{"dtype": torch.float32} | sizes | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_size", [0, 8, 15, 24, 257, 272, -16])
def test_block_sizes_that_no_kernel_takes(block_size: int) -> None:
    with pytest.raises(ConfigError, match=f"block_size {block_size}"):
        BlockAllocator(4, block_size)


def test_pages_in_order_and_only_what_is_missing() -> None:
    allocator = BlockAllocator(8, 16)
    assert allocator.allocate(7, 16) == (0,)
    assert allocator.allocate(3, 17) == (1, 2)
    assert allocator.allocate(7, 33) == (0, 3, 4)
    assert allocator.allocate(7, 1) == (0, 3, 4)
    assert allocator.blocks(7) == (0, 3, 4)
    assert allocator.blocks(99) == ()
    assert allocator.num_free == 3


def test_exhaustion_changes_nothing() -> None:
    allocator = BlockAllocator(3, 16)
    allocator.allocate(0, 20)
    with pytest.raises(ResourceError, match=r"1 of 3 blocks free, sequence 1 needs 2 more for 30 tokens"):
        allocator.allocate(1, 30)
    assert allocator.num_free == 1
    assert allocator.allocate(1, 16) == (2,)


def test_freed_pages_come_back_first() -> None:
    allocator = BlockAllocator(6, 16)
    allocator.allocate(0, 32)
    allocator.allocate(1, 32)
    allocator.free(0)
    assert allocator.allocate(2, 64) == (0, 1, 4, 5)


def test_freeing_twice_is_an_error() -> None:
    allocator = BlockAllocator(2, 16)
    allocator.allocate(5, 1)
    allocator.allocate(6, 1)
    allocator.free(5)
    with pytest.raises(ValueError, match=r"sequence 5 holds no blocks.*holding: 6"):
        allocator.free(5)
    assert allocator.num_free == 1


def test_trim_keeps_what_the_length_needs() -> None:
    allocator = BlockAllocator(5, 16)
    allocator.allocate(0, 80)
    assert allocator.trim(0, 33) == (3, 4)
    assert allocator.blocks(0) == (0, 1, 2)
    assert allocator.trim(0, 33) == ()
    assert allocator.num_free == 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 90), st.sampled_from("aft")), max_size=40))
def test_no_page_is_held_twice_and_none_is_lost(steps: list[tuple[int, int, str]]) -> None:
    allocator = BlockAllocator(9, 16)
    for sequence, num_tokens, what in steps:
        held = allocator.blocks(sequence)
        try:
            if what == "a":
                assert allocator.allocate(sequence, num_tokens)[: len(held)] == held
            elif what == "t" and held:
                allocator.trim(sequence, num_tokens)
            elif held:
                allocator.free(sequence)
        except ResourceError:
            assert allocator.blocks(sequence) == held
        pages = [page for s in range(5) for page in allocator.blocks(s)]
        assert len(pages) == len(set(pages)) == 9 - allocator.num_free


def test_shapes_and_bytes() -> None:
    shape = shape_of()
    cache = PagedKVCache(shape, CPU)
    assert [tuple(t.shape) for t in cache.keys] == [(35, 16, 2, 24)] * 3
    assert {t.data_ptr() for t in cache.keys}.isdisjoint(t.data_ptr() for t in cache.values)
    assert held_bytes(cache) == shape.num_bytes == 2 * 3 * 35 * 16 * 2 * 24 * 4
    assert shape_of(dtype=torch.float16).num_bytes * 2 == shape.num_bytes


def test_too_large_a_cache_is_refused_with_its_size() -> None:
    with pytest.raises(ResourceError, match=r"GiB of KV cache .* cannot be had on cpu"):
        PagedKVCache(shape_of(num_layers=10**6, head_dim=10**9), CPU)
