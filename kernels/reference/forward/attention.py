"""attention, defined: gather the pages of a sequence, then softmax over what each token may see."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q: Tensor,  # [T, Hq, D]
    k_cache: Tensor,  # [NB, BS, Hkv, D]
    v_cache: Tensor,  # [NB, BS, Hkv, D]
    block_table: Tensor,  # [B, MB] int32
    context_lens: Tensor,  # [B] int32, with the new tokens
    cu_seqlens_q: Tensor,  # [B+1] int32
    out: Tensor,  # [T, Hq, D], mutated where a token of a sequence lives
    scale: float,
    max_q_len: int,
    workspace: Tensor | None = None,  # not used
    counters: Tensor | None = None,  # not used
) -> None:
    """Scores and softmax in fp32, weights rounded to the dtype of the values."""
    block_size, group = k_cache.shape[1], q.shape[1] // k_cache.shape[2]
    bounds = cu_seqlens_q.tolist()
    for b, context_len in enumerate(context_lens.tolist()):
        tokens = slice(bounds[b], bounds[b + 1])
        q_len = bounds[b + 1] - bounds[b]
        if context_len == 0 or q_len == 0:
            continue
        assert q_len <= min(context_len, max_q_len)
        pages = block_table[b, : -(-context_len // block_size)].long()
        # [Hq, context_len, D]
        k, v = (
            cache[pages].flatten(0, 1)[:context_len].repeat_interleave(group, 1).transpose(0, 1)
            for cache in (k_cache, v_cache)
        )
        scores = q[tokens].transpose(0, 1).float() @ k.float().transpose(1, 2) * scale
        hidden = torch.ones(q_len, context_len, dtype=torch.bool, device=q.device).triu(
            context_len - q_len + 1
        )
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[tokens] = (weights.to(v.dtype) @ v).transpose(0, 1)
