"""qkv_rope_store, defined: norm of q and k heads, rotation by position, rows of k and v to their slots."""

from __future__ import annotations

import torch
from torch import Tensor


def qkv_rope_store(
    qkv: Tensor,  # [T, (Hq + 2 Hkv) * D]
    positions: Tensor,  # [T] int32
    cos: Tensor,  # [P, D/2] fp32
    sin: Tensor,  # [P, D/2] fp32
    slot_mapping: Tensor,  # [T] int64, -1: no store
    q_out: Tensor,  # [T, Hq, D], mutated
    k_cache: Tensor,  # [NB, BS, Hkv, D], mutated
    v_cache: Tensor,  # [NB, BS, Hkv, D], mutated
    q_norm_weight: Tensor | None,  # [D]
    k_norm_weight: Tensor | None,  # [D]
    eps: float,
) -> None:
    """In fp32, rounded once, at the store."""
    num_heads, head_dim = q_out.shape[1:]
    num_kv_heads = k_cache.shape[2]
    heads = qkv.float().unflatten(1, (-1, head_dim))
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm_weight is not None and k_norm_weight is not None:
        q, k = _normed(q, q_norm_weight, eps), _normed(k, k_norm_weight, eps)
    angles = positions.long()
    q_out.copy_(_rotated(q, cos[angles], sin[angles]))
    stored = slot_mapping >= 0
    slots = slot_mapping[stored]
    k = _rotated(k, cos[angles], sin[angles])
    k_cache.view(-1, num_kv_heads, head_dim)[slots] = k[stored].to(k_cache.dtype)
    v_cache.view(-1, num_kv_heads, head_dim)[slots] = v[stored].to(v_cache.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)  # [T, H, D/2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
