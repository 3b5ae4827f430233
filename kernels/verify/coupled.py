"""Coupled judging, inside kernels: the target's own token of every row, under the noise that the draft had.

own_key_kernel: grid (row blocks, key tiles); one tile's best key of each sampled row. coupled_verdict: the
best of the tiles, and the first row whose token is not its candidate."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..sampling.noise import TARGET, exponential, inverse_temperature, log, noise_tile, uniform
from ..sampling.sample import INFINITY, best_of, best_tile, clean, is_usable, load_tile, row_offset, top_tile
from .window import BAD, GREEDY, STANDS, first_of, locate, pick, slot_of, threshold_of


@triton.jit
def own_key_kernel(
    rows_ptr,
    num_draft_ptr,
    positions_ptr,
    draft_ids_ptr,
    token_ids_ptr,
    pending_ptr,
    finish_ptr,
    round_ptr,
    capacity,
    K,
    S,
    slots_ptr,  # [B] or None
    target_ptr,  # [N, V], rows at target_stride
    target_stride,
    target_thresholds_ptr,  # [N] or None
    temperature_ptr,  # [slots]
    seed_ptr,  # [slots]
    top_ptr,  # [B * MAX_ROWS, T]
    key_ptr,  # [B * MAX_ROWS, KT] fp32, out
    key_at_ptr,  # [B * MAX_ROWS, KT] int32, out
    N,  # B * MAX_ROWS
    V,
    T,
    KT,
    SCALED: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    STATE: tl.constexpr,
    TP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    live = place < N
    b = place // MAX_ROWS
    r = place % MAX_ROWS
    rows, _num_draft, target_row, position, _step, _candidate = locate(
        b,
        r,
        live,
        rows_ptr,
        num_draft_ptr,
        positions_ptr,
        draft_ids_ptr,
        token_ids_ptr,
        pending_ptr,
        finish_ptr,
        round_ptr,
        capacity,
        K,
        S,
        MAX_ROWS,
        STATE,
    )
    live = live & (r < rows)
    slot = slot_of(slots_ptr, b, live)
    temperature = tl.load(temperature_ptr + slot, mask=live, other=0.0)
    top = top_tile(top_ptr, place, live, T, TP)
    live = live & (temperature > 0.0) & is_usable(top)
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    top = tl.where(live, top, 0.0)
    inverse = inverse_temperature(temperature)
    if SCALED:
        inverse = inverse * 0.0 + 1.0
    column = tile * TILE + tl.arange(0, TILE)
    x = load_tile(target_ptr, row_offset(target_row, target_stride), live, column, V)
    scaled = (clean(x, threshold_of(target_thresholds_ptr, target_row, live)) - top[:, None]) * inverse[
        :, None
    ]
    seed = tl.load(seed_ptr + slot, mask=live, other=0)
    words = noise_tile(seed, position, tl.full([ROWS], TARGET, tl.int32), tile * TILE, TILE)
    key, at = best_of(scaled - log(exponential(uniform(words))), column[None, :])
    tl.store(key_ptr + place * KT + tile, key, mask=live)
    tl.store(key_at_ptr + place * KT + tile, at, mask=live)


@triton.jit
def coupled_verdict(
    b,  # [SEQS * RP]
    r,
    live,
    num_draft,
    candidate,
    temperature,
    top_ptr,
    at_ptr,
    key_ptr,
    key_at_ptr,
    V,
    T,
    KT,
    MAX_ROWS: tl.constexpr,
    SEQS: tl.constexpr,
    RP: tl.constexpr,
    TP: tl.constexpr,
    KTP: tl.constexpr,
):
    """accept_len, next_token, bad (int1), num_draft: [SEQS] each. live: rows that exist."""
    place = b * MAX_ROWS + r
    top, argmax = best_tile(top_ptr, at_ptr, place, live, T, TP)
    usable = is_usable(top)
    sampled = live & usable & (temperature > 0.0)
    key, key_at = best_tile(key_ptr, key_at_ptr, place, sampled, KT, KTP)
    token = tl.where(sampled & (key > -INFINITY), key_at, argmax)
    bonus = r >= num_draft
    bad = live & ((usable & (bonus | ((candidate >= 0) & (candidate < V)))) == 0)
    first, chosen = first_of(live & (bad | bonus | (token != candidate)), r, SEQS, RP)
    num_draft = pick(num_draft, r == 0, SEQS, RP)
    ended = pick(tl.where(bad, BAD, GREEDY), chosen, SEQS, RP)
    accept_len = tl.where(ended == STANDS, num_draft, first)
    return accept_len, tl.where(ended == GREEDY, pick(token, chosen, SEQS, RP), -1), ended == BAD, num_draft
