"""What stands between the QKV projection and attention: norm of the heads, rotary positions, KV store.

    n(x) = x / sqrt(mean(x^2) + eps) * weight                                    over one head; Qwen3 only
    r(x) = (a * cos - b * sin, b * cos + a * sin)   with a, b the halves of x     arXiv 2104.09864
    q_out[t] = r(n(q[t]));  k_cache[slot] = r(n(k[t])),  v_cache[slot] = v[t]     slot = slot_mapping[t]

Grid (T, ceil((Hq + 2 Hkv) / 8)): one program takes 8 heads of one token, whichever of q, k and v they are.

Shapes: qkv [T, (Hq + 2 Hkv) * D], q heads first, then k, then v; positions [T]; cos, sin [P, D/2];
slot_mapping [T] int64, slot = block id * BS + row, -1: neither k nor v is stored; q_out [T, Hq, D];
k_cache, v_cache [NB, BS, Hkv, D]; norm weights [D] or None.
Dtypes: qkv fp32 or that of q_out; q_out and caches fp16/bf16/fp32; fp32 in between, rounded once, at the
store.
Requires: slots below NB * BS, each at most once. A position outside the table makes NaN, not a fault.
Mutates: q_out, and the rows of the caches that slot_mapping names.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import check, check_computed_rightly
from ..base.dependent import await_previous, dependent
from ..base.library import operator

BLOCK_H = 8  # heads of a program
NUM_WARPS = 4
# No multiply-adds: the rotation has the bits of torch's.
OPTIONS = {"enable_fp_fusion": False}


@triton.jit(do_not_specialize=["num_positions", "num_slots"])
def rope_store_kernel(
    qkv_ptr,  # [T, (HQ + 2 HKV) * D]
    positions_ptr,  # [T] int32
    cos_ptr,  # [P, D/2] fp32
    sin_ptr,  # [P, D/2] fp32
    slot_mapping_ptr,  # [T] int64
    q_out_ptr,  # [T, HQ, D] out
    k_cache_ptr,  # [NB * BS, HKV, D] out
    v_cache_ptr,  # [NB * BS, HKV, D] out
    q_norm_ptr,  # [D], read if HAS_NORM
    k_norm_ptr,  # [D], read if HAS_NORM
    num_positions,  # P
    num_slots,  # NB * BS
    eps,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    HALF: tl.constexpr,  # D/2
    BLOCK_HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    D: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    col = tl.arange(0, BLOCK_HALF)
    is_col = col < HALF
    inside = (head < HQ + 2 * HKV)[:, None] & is_col[None, :]
    is_q = (head < HQ)[:, None]

    x_ptr = qkv_ptr + token * ((HQ + 2 * HKV) * D) + head[:, None] * D + col[None, :]
    a = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    position = tl.load(positions_ptr + token).to(tl.int64)
    # Triton 3.9's interpreter takes no mask of a scalar and a block: the scalar goes into the bound instead.
    is_known = col < tl.where((position >= 0) & (position < num_positions), HALF, 0)
    cos = tl.load(cos_ptr + position * HALF + col, mask=is_known, other=float("nan"))[None, :]
    sin = tl.load(sin_ptr + position * HALF + col, mask=is_known, other=float("nan"))[None, :]

    normed_a, normed_b = a, b
    if HAS_NORM:
        mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D
        factor = (1.0 / tl.sqrt(mean + eps))[:, None]
        q_weight_a = tl.load(q_norm_ptr + col, mask=is_col, other=0.0).to(tl.float32)[None, :]
        q_weight_b = tl.load(q_norm_ptr + HALF + col, mask=is_col, other=0.0).to(tl.float32)[None, :]
        k_weight_a = tl.load(k_norm_ptr + col, mask=is_col, other=0.0).to(tl.float32)[None, :]
        k_weight_b = tl.load(k_norm_ptr + HALF + col, mask=is_col, other=0.0).to(tl.float32)[None, :]
        normed_a = a * factor * tl.where(is_q, q_weight_a, k_weight_a)
        normed_b = b * factor * tl.where(is_q, q_weight_b, k_weight_b)
    rotated_a = normed_a * cos - normed_b * sin
    rotated_b = normed_b * cos + normed_a * sin

    q_ptr = q_out_ptr + token * (HQ * D) + head[:, None] * D + col[None, :]
    q_mask = inside & is_q
    tl.store(q_ptr, rotated_a.to(q_out_ptr.dtype.element_ty), mask=q_mask)
    tl.store(q_ptr + HALF, rotated_b.to(q_out_ptr.dtype.element_ty), mask=q_mask)

    slot = tl.load(slot_mapping_ptr + token)
    tl.device_assert(slot < num_slots, "qkv_rope_store: slot out of range")
    stored = (head < tl.where(slot >= 0, HQ + 2 * HKV, 0))[:, None] & is_col[None, :]
    row = slot * (HKV * D) + col[None, :]
    k_offset = row + (head - HQ)[:, None] * D
    k_mask = stored & (head >= HQ)[:, None] & (head < HQ + HKV)[:, None]
    tl.store(k_cache_ptr + k_offset, rotated_a.to(k_cache_ptr.dtype.element_ty), mask=k_mask)
    tl.store(k_cache_ptr + k_offset + HALF, rotated_b.to(k_cache_ptr.dtype.element_ty), mask=k_mask)
    v_offset = row + (head - HQ - HKV)[:, None] * D
    v_mask = stored & (head >= HQ + HKV)[:, None]
    tl.store(v_cache_ptr + v_offset, a.to(v_cache_ptr.dtype.element_ty), mask=v_mask)
    tl.store(v_cache_ptr + v_offset + HALF, b.to(v_cache_ptr.dtype.element_ty), mask=v_mask)


@operator
def qkv_rope_store(
    qkv: Annotated[Tensor, "fp32|q_out [T, W]"],
    positions: Annotated[Tensor, "int32 [T]"],
    cos: Annotated[Tensor, "fp32 [P, H]"],
    sin: Annotated[Tensor, "fp32 [P, H]"],
    slot_mapping: Annotated[Tensor, "int64 [T]"],
    q_out: Annotated[Tensor, "float [T, Hq, D] out"],
    k_cache: Annotated[Tensor, "q_out [NB, BS, Hkv, D] out"],
    v_cache: Annotated[Tensor, "q_out [NB, BS, Hkv, D] out"],
    q_norm_weight: Annotated[Tensor | None, "float [D]"],
    k_norm_weight: Annotated[Tensor | None, "float [D]"],
    eps: float,
    pdl: bool = False,
) -> None:
    """Rotated queries to q_out, rotated keys and plain values to the cache. pdl: kernels/base/dependent.py.

    Blocks of 16, slot_mapping [35, -1]: token 0 goes to row 3 of block 2; of token 1 only q is written.
    """
    op = "qkv_rope_store"
    check_computed_rightly(op, "q_out", q_out)
    num_tokens, num_heads, head_dim = q_out.shape
    if head_dim % 16 or not 16 <= head_dim <= 256:
        raise ValueError(f"{op}: head_dim is {head_dim}, expected a multiple of 16 from 16 to 256")
    num_blocks, block_size, num_kv_heads, _ = k_cache.shape
    num_all = num_heads + 2 * num_kv_heads
    if (q_norm_weight is None) != (k_norm_weight is None):
        given, missing = ("k", "q") if q_norm_weight is None else ("q", "k")
        raise ValueError(f"{op}: {given}_norm_weight without {missing}_norm_weight: pass both or neither")
    check(op, "qkv", qkv, (num_tokens, num_all * head_dim))
    check(op, "cos", cos, (None, head_dim // 2))
    if num_tokens == 0:
        return
    rope_store_kernel[(num_tokens, triton.cdiv(num_all, BLOCK_H))](
        *(qkv, positions, cos, sin, slot_mapping, q_out, k_cache, v_cache),
        cos if q_norm_weight is None else q_norm_weight,
        cos if k_norm_weight is None else k_norm_weight,
        *(cos.shape[0], num_blocks * block_size, eps),
        HQ=num_heads,
        HKV=num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_H=BLOCK_H,
        HAS_NORM=q_norm_weight is not None,
        num_warps=NUM_WARPS,
        **dependent(op, pdl),
        **OPTIONS,
    )
