"""Back ends that need no kernel: torch's against a loop over rows, flash-attn's way around ragged batches."""

import sys
from types import ModuleType

import pytest
import torch

from pearl_rt.errors import ConfigError
from pearl_rt.model.attention_backends import attention_backend
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.kv_cache import CacheShape

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4, 2, 8, 256
SHAPE = CacheShape(1, 7, BLOCK_SIZE, KV_HEADS, HEAD_DIM, torch.float16)
ROWS = ((3, 260), (0, 0), (1, 1), (5, 5))  # of each sequence: new tokens, context with them
NUM_ROWS = sum(q_len for q_len, _ in ROWS) + 2  # padding behind


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ForwardBatch]:
    """q, k_cache, v_cache and the batch. Rows of a page behind a context are NaN."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(NUM_ROWS, HEADS, HEAD_DIM, generator=generator).half()
    pages = (SHAPE.num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    k, v = (torch.randn(pages, generator=generator).half() for _ in range(2))
    table = torch.tensor([[5, 2], [0, 0], [3, 0], [1, 0]], dtype=torch.int32)
    batch = ForwardBatch.empty(NUM_ROWS, max(q_len for q_len, _ in ROWS), table)
    for b, (q_len, context_len) in enumerate(ROWS):
        batch.cu_seqlens_q[b + 1] = batch.cu_seqlens_q[b] + q_len
        batch.context_lens[b] = context_len
        for cache in (k, v):
            if context_len:
                last = table[b, (context_len - 1) // BLOCK_SIZE]
                cache[last, (context_len - 1) % BLOCK_SIZE + 1 :] = torch.nan
    return q, k, v, batch


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """One query and one head at a time, in fp64."""
    out = torch.full(q.shape, torch.nan, dtype=torch.float64)
    for b, (q_len, context_len) in enumerate(ROWS):
        for i in range(q_len):
            row, seen = int(batch.cu_seqlens_q[b]) + i, context_len - q_len + i + 1
            places = [(int(batch.block_table[b, s // BLOCK_SIZE]), s % BLOCK_SIZE) for s in range(seen)]
            for head in range(HEADS):
                keys, values = (
                    torch.stack([cache[place][head * KV_HEADS // HEADS] for place in places]).double()
                    for cache in (k, v)
                )
                weights = torch.softmax(keys @ q[row, head].double() * HEAD_DIM**-0.5, dim=0)
                out[row, head] = weights @ values
    return out


def fake_flash_attn(
    q: torch.Tensor,  # [B, S, Hq, D]
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """What flash-attn's documentation says of flash_attn_with_kvcache: the mask is aligned bottom-right."""
    assert causal
    out = torch.zeros_like(q)
    for b, length in enumerate(cache_seqlens.tolist()):
        k, v = (cache[block_table[b].long()].flatten(0, 1)[:length].float() for cache in (k_cache, v_cache))
        for i in range(q.shape[1]):
            seen = length - q.shape[1] + i + 1
            for head in range(HEADS if seen > 0 else 0):
                scores = k[:seen, head * KV_HEADS // HEADS] @ q[b, i, head].float() * softmax_scale
                out[b, i, head] = torch.softmax(scores, dim=0) @ v[:seen, head * KV_HEADS // HEADS]
    return out


def run(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v, batch = case()
    out = torch.full_like(q, torch.nan)
    unused = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int32)
    attention_backend(name, SHAPE, HEADS)(q, k, v, batch, out, *unused)
    return out[:-2].double(), by_definition(q, k, v, batch)[:-2]


def test_sdpa() -> None:
    found, expected = run("sdpa")
    assert (found - expected).abs().max() < 4e-3


def test_flash_attn_is_given_ragged_queries_at_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = fake_flash_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    found, expected = run("flash-attn")
    assert (found - expected).abs().max() < 4e-3
    for change, message in (
        (CacheShape(1, 7, 16, KV_HEADS, HEAD_DIM, torch.float16), "block_size 16: pass block_size=256"),
        (CacheShape(1, 7, 256, KV_HEADS, HEAD_DIM, torch.float32), "got torch.float32"),
    ):
        with pytest.raises(ConfigError, match=message):
            attention_backend("flash-attn", change, HEADS)


def test_back_ends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"back end 'paged' is not supported: pass one of 'triton', 'fl"):
        attention_backend("paged", SHAPE, HEADS)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ConfigError, match=r"'flash-attn' is not installed: `pip install flash-attn"):
        attention_backend("flash-attn", SHAPE, HEADS)
