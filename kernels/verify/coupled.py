"""Coupled judging, inside kernels: the target's own token of every row, under the noise that the draft had.

coupled_kernel: grid (row blocks, key tiles); one tile's best key of each sampled row. A sequence's last
program takes the best of the tiles, and the first row whose token is not its candidate: coupled_verdict."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..base.dependent import await_previous
from ..sampling.noise import TARGET, exponential, inverse_temperature, log, noise_tile, uniform
from ..sampling.sample import (
    INFINITY,
    any_of,
    beside,
    best_of,
    best_tile,
    clean,
    is_usable,
    load_tile,
    row_offset,
    rows_of,
    threshold_of,
    top_tile,
)
from .verdict import deliver, is_last
from .window import ACCEPTED, BAD, GREEDY, Verdict, first_of, locate, pick, slot_of


@triton.jit
def coupled_verdict(
    b,  # [SEQS * RP]; of one sequence a scalar
    r,
    live,  # rows that exist
    row,  # Row
    temperature,
    scans,  # Scans
    keys,  # Keys
    K,
    V,
    T,
    KT,
    SEQS: tl.constexpr,
    RP: tl.constexpr,
    TP: tl.constexpr,
    KTP: tl.constexpr,
):
    """A Verdict of each sequence."""
    place = b * (K + 1) + r
    top, argmax = best_tile(scans.top, scans.at, place, live, T, TP)
    usable = is_usable(top)
    sampled = live & usable & (temperature > 0.0)
    key, key_at = best_tile(keys.best, keys.at, place, sampled, KT, KTP)
    token = tl.where(sampled & (key > -INFINITY), key_at, argmax)
    bonus = r >= row.num_draft
    candidate = row.candidate
    bad = live & ((usable & (bonus | ((candidate >= 0) & (candidate < V)))) == 0)
    first, chosen = first_of(live & (bad | bonus | (token != candidate)), r, SEQS, RP)
    num_draft = pick(row.num_draft, r == 0, SEQS, RP)
    ended = pick(tl.where(bad, BAD, GREEDY), chosen, SEQS, RP)
    accept_len = tl.where(ended == ACCEPTED, num_draft, first)
    token = tl.where(ended == GREEDY, pick(token, chosen, SEQS, RP), -1)
    return Verdict(accept_len, token, ended == BAD, num_draft)


@triton.jit(do_not_specialize=["N", "K", "NS"])  # one binary for all windows
def coupled_kernel(
    windows,  # Windows
    target,  # TargetLogits
    temperature_ptr,  # [slots]
    seed_ptr,  # [slots]
    scans,  # Scans
    keys,  # Keys [B * (K + 1), KT], out
    verdicts,  # Verdicts, out; or None
    commits,  # Commits; or None
    N,  # B * (K + 1)
    K,
    B,
    V,
    T,
    KT,
    NS,  # stop ids of a slot
    SCALED: tl.constexpr,
    RP: tl.constexpr,  # powers of two: > K, >= T, >= KT
    TP: tl.constexpr,
    KTP: tl.constexpr,
    WIDTH: tl.constexpr,  # as in commit
    ROWS: tl.constexpr,  # 1 on a GPU
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    place = rows_of(tl.program_id(0), ROWS)
    tile = tl.program_id(1)
    here = place < N
    b = place // (K + 1)
    r = place % (K + 1)
    row = locate(b, r, here, windows, K, 1)
    live = here & (r < row.rows)
    slot = slot_of(windows.slots, b, live)
    temperature = tl.load(temperature_ptr + slot, mask=live, other=0.0)
    top = top_tile(scans.top, place, live, T, TP)
    live = live & (temperature > 0.0) & is_usable(top)
    if any_of(live):
        top = tl.where(live, top, 0.0)
        inverse = inverse_temperature(temperature)
        if SCALED:
            inverse = inverse * 0.0 + 1.0
        column = tile * TILE + tl.arange(0, TILE)
        x = load_tile(target.logits, row_offset(row.target, target.stride), live, column, V)
        kept = clean(x, threshold_of(target.thresholds, row.target, live))
        scaled = (kept - beside(top)) * beside(inverse)
        seed = tl.load(seed_ptr + slot, mask=live, other=0)
        words = noise_tile(seed, row.position, b * 0 + TARGET, tile * TILE, TILE)
        key, at = best_of(scaled - log(exponential(uniform(words))), column)
        tl.store(keys.best + place * KT + tile, key, mask=live)
        tl.store(keys.at + place * KT + tile, at, mask=live)

    last = is_last(scans.num_ended, b, here, (K + 1) * KT)
    if any_of(last) == 0:
        return
    # All rows of the sequences that are complete.
    r = tl.arange(0, ROWS * RP) % RP
    if ROWS == 1:
        sequence, complete = b, last
    else:
        sequence = tl.reshape(tl.broadcast_to(b[:, None], [ROWS, RP]), [ROWS * RP])
        complete = tl.reshape(tl.broadcast_to(last.to(tl.int32)[:, None], [ROWS, RP]), [ROWS * RP]) != 0
        complete = complete & (r <= K)
    row = locate(sequence, r, complete, windows, K, 1)
    complete = complete & (row.rows > 0)
    slot = slot_of(windows.slots, sequence, complete)
    temperature = tl.load(temperature_ptr + slot, mask=complete, other=0.0)
    live = complete & (r < row.rows)
    verdict = coupled_verdict(
        sequence, r, live, row, temperature, scans, keys, K, V, T, KT, ROWS, RP, TP, KTP
    )
    deliver(b, last, verdict, windows, verdicts, commits, K, B, NS, WIDTH)
