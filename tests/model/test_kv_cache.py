"""Pages: counted to the byte, and refused by name."""

import pytest
import torch

from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.pair_sizes import held_bytes
from pearl_rt.errors import ConfigError, ResourceError
from pearl_rt.model.kv_cache import CacheShape, PagedKVCache

CPU = torch.device("cpu")


def shape_of(**changes: object) -> CacheShape:
    sizes = {"num_layers": 3, "num_blocks": 35, "block_size": 16, "num_kv_heads": 2, "head_dim": 24}
    return CacheShape(**{"dtype": torch.float32} | sizes | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_size", [0, 8, 15, 24, 257, 272, -16])
def test_block_sizes_that_no_kernel_takes(block_size: int) -> None:
    with pytest.raises(ConfigError, match=f"block_size {block_size}"):
        KvPool(block_size, 4, 64)
    with pytest.raises(ConfigError, match=f"block_size {block_size}"):
        KvPool.of(None, num_slots=1, max_model_len=64, block_size=block_size)


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
