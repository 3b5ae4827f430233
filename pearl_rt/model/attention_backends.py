"""Attention over paged keys and values, by name: our own kernel, flash-attn's, or plain torch for checking.

Each takes the queries of a ForwardBatch and the pages of one layer, and writes [T, Hq, D] of its caller's.
Knows nothing of layers, weights or positions. A back end that is not there is refused when a model is built,
never in a forward pass.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from pearl_rt.errors import ConfigError
from pearl_rt.model.forward_batch import ForwardBatch
from pearl_rt.model.kv_cache import CacheShape

Tensor = torch.Tensor


class AttentionBackend(Protocol):
    """Causal grouped-query attention of the last rows of each sequence to all of it."""

    def __call__(
        self,
        q: Tensor,  # [T, Hq, D]
        keys: Tensor,  # [num_blocks, block_size, Hkv, D]
        values: Tensor,
        batch: ForwardBatch,
        out: Tensor,  # [T, Hq, D]; rows of padding are left as they are, or garbage
        workspace: Tensor,  # uint8
        counters: Tensor,  # [T * Hq] int32, 0 before and after
    ) -> None: ...


class TritonAttention:
    """pearl_rt.kernels.forward.attention: row-invariant, and capturable."""

    def __init__(self, cache: CacheShape, num_heads: int, pdl: bool = False) -> None:
        from pearl_rt.kernels.forward.attention import attention
        from pearl_rt.kernels.forward.attention_tile import PagedBatch

        self._attention, self._paged = attention, PagedBatch
        self._scale, self._pdl = cache.head_dim**-0.5, pdl

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        batch: ForwardBatch,
        out: Tensor,
        workspace: Tensor,
        counters: Tensor,
    ) -> None:
        where = batch.block_table, batch.context_lens, batch.cu_seqlens_q
        paged = self._paged(q, keys, values, *where, out)
        self._attention(paged, self._scale, batch.max_q_len, workspace, counters, self._pdl)


class SdpaAttention:
    """scaled_dot_product_attention of torch over gathered pages, sequence after sequence.

    For checking: it copies all keys and reads lengths on the host, so that it is slow and cannot be captured.
    """

    def __init__(self, cache: CacheShape, num_heads: int, pdl: bool = False) -> None:
        self._groups = num_heads // cache.num_kv_heads

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        batch: ForwardBatch,
        out: Tensor,
        workspace: Tensor,
        counters: Tensor,
    ) -> None:
        begins, lengths = batch.cu_seqlens_q.tolist(), batch.context_lens.tolist()
        for b, context_len in enumerate(lengths):
            rows = slice(begins[b], begins[b + 1])
            num_rows = rows.stop - rows.start
            if num_rows == 0 or context_len == 0:
                continue
            num_pages = -(-context_len // keys.shape[1])
            pages = batch.block_table[b, :num_pages].long()
            k, v = (
                cache[pages]
                .flatten(0, 1)[:context_len]
                .repeat_interleave(self._groups, dim=1)
                .transpose(0, 1)
                for cache in (keys, values)
            )  # [Hq, context_len, D]
            mask = torch.ones(num_rows, context_len, dtype=torch.bool, device=q.device)
            mask = mask.tril(context_len - num_rows)  # row r sees context_len - num_rows + r + 1 keys
            attended = F.scaled_dot_product_attention(q[rows].transpose(0, 1), k, v, mask)
            out[rows] = attended.transpose(0, 1)


class FlashAttention:
    """flash_attn_with_kvcache of flash-attn, which takes the same number of queries for every sequence.

    Queries are moved to the end of max_q_len rows each, where the causal mask is the same, and back. Needs
    CUDA, fp16 or bf16, and pages of a multiple of 256 positions.
    """

    def __init__(self, cache: CacheShape, num_heads: int, pdl: bool = False) -> None:
        try:
            from flash_attn import flash_attn_with_kvcache
        except ImportError:
            raise ConfigError(
                "attention back end 'flash-attn' is not installed: `pip install flash-attn "
                "--no-build-isolation`, or pass attention_backend='triton'"
            ) from None
        if cache.block_size % 256:
            raise ConfigError(
                "attention back end 'flash-attn' takes pages of 256 positions, got block_size "
                f"{cache.block_size}: pass block_size=256, or attention_backend='triton'"
            )
        if cache.dtype not in (torch.float16, torch.bfloat16):
            raise ConfigError(
                f"attention back end 'flash-attn' computes in float16 or bfloat16, got {cache.dtype}: pass "
                "one of these dtypes, or attention_backend='triton'"
            )
        self._attention = flash_attn_with_kvcache
        self._scale = cache.head_dim**-0.5

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        batch: ForwardBatch,
        out: Tensor,
        workspace: Tensor,
        counters: Tensor,
    ) -> None:
        begins, ends = batch.cu_seqlens_q[:-1, None], batch.cu_seqlens_q[1:, None]
        rows = ends - batch.max_q_len + torch.arange(batch.max_q_len, device=q.device)  # [B, max_q_len]
        padded = q[rows.clamp(min=0)]  # [B, max_q_len, Hq, D]
        attended = self._attention(
            padded,
            keys,
            values,
            cache_seqlens=batch.context_lens,
            block_table=batch.block_table,
            softmax_scale=self._scale,
            causal=True,
        )
        kept = torch.where(rows >= begins, rows, q.shape[0])  # the others go to a row more, which is cut off
        scattered = out.new_zeros((q.shape[0] + 1, *out.shape[1:]))
        scattered.index_copy_(0, kept.flatten(), attended.flatten(0, 1))
        out.copy_(scattered[:-1])


BACKENDS: dict[str, Callable[[CacheShape, int, bool], AttentionBackend]] = {
    "triton": TritonAttention,
    "flash-attn": FlashAttention,
    "sdpa": SdpaAttention,
}


def attention_backend(name: str, cache: CacheShape, num_heads: int, pdl: bool = False) -> AttentionBackend:
    """The back end of that name for a cache of this shape. Raises ConfigError, which lists what there is.
    pdl: of our own kernel (kernels/base/dependent.py); the others' launches wait as without.
    """
    if name not in BACKENDS:
        raise ConfigError(
            f"attention back end {name!r} is not supported: pass one of {', '.join(map(repr, BACKENDS))}"
        )
    return BACKENDS[name](cache, num_heads, pdl)
