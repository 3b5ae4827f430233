"""Rejection, inside kernels: which row fails the ratio test, and the race for the recovered token.

    accepted   row r, if u * q(x) / sum q <= p(x) / sum p
    recovered  else argmax_i max(p_i - q_i, 0) / Exp(seed, position, i)

rejection_kernel: grid (sequence blocks, key tiles). Every program decides for all rows of its sequences
from the tiles of judge_scan_kernel (a few kilobytes), then races one tile of the row that ended the
window; where nothing of the residual lies in the tile, it draws from the row alone, which is read only if
nothing lies in any. A sequence's last program takes the best of the tiles. All is fp32 but the comparison of
two products, which is fp64 as in the definition: three multiplications a row, and nothing underflows."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..base.dependent import await_previous
from ..sampling.noise import (
    ACCEPT,
    BONUS,
    RESIDUAL,
    exp,
    exponential,
    inverse_temperature,
    log,
    noise_tile,
    noise_words,
    uniform,
)
from ..sampling.sample import (
    INFINITY,
    NOWHERE,
    any_of,
    beside,
    best_of,
    best_tile,
    clean,
    is_usable,
    load_tile,
    of_tiles,
    row_offset,
    rows_of,
    threshold_of,
)
from .verdict import deliver, is_last
from .window import (
    ACCEPTED,
    BAD,
    BONUS_TOKEN,
    GREEDY,
    RECOVERED,
    Verdict,
    first_of,
    locate,
    pick,
    slot_of,
)


@triton.jit
def row_sum(sum_ptr, tops, row, live, top, inverse, T, TP: tl.constexpr):
    """The sum of exp((x - top) * inverse) over the tiles of each row: [ROWS]. tops: of tiles [ROWS, TP]."""
    sums = of_tiles(sum_ptr, row, live, T, TP, 0.0)
    factor = exp((tl.where(beside(live), tops, -INFINITY) - beside(top)) * beside(inverse))
    return tl.sum(sums * factor, axis=-1)


@triton.jit
def part_of(total, live):
    """1 / total, or 1 where not live."""
    safe = tl.where(live, total, 1.0)
    return tl.div_rn(tl.full(safe.shape, 1.0, tl.float32), safe)


@triton.jit(do_not_specialize=["K", "S", "NS"])  # one binary for all windows
def rejection_kernel(
    windows,  # Windows
    target,  # TargetLogits
    draft,  # DraftLogits
    temperature_ptr,  # [slots]
    seed_ptr,  # [slots]
    scans,  # Scans
    keys,  # Keys [B, KT], out: of the residual
    own,  # Keys [B, KT], out: of the row alone: of bonus rows, and where a tile's residual is empty
    verdicts,  # Verdicts, out; or None
    commits,  # Commits; or None
    K,
    S,
    B,
    V,
    T,
    KT,
    NS,  # stop ids of a slot
    SCALED: tl.constexpr,
    SEQS: tl.constexpr,  # 1 on a GPU
    RP: tl.constexpr,  # powers of two: > K, >= T, >= KT
    TP: tl.constexpr,
    KTP: tl.constexpr,
    WIDTH: tl.constexpr,  # as in commit
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    # All rows of the sequences at once: is each usable, and is its candidate accepted?
    sequence = rows_of(tl.program_id(0), SEQS)
    r = tl.arange(0, SEQS * RP) % RP
    if SEQS == 1:
        b, here = sequence, sequence < B
    else:
        b = tl.program_id(0) * SEQS + tl.arange(0, SEQS * RP) // RP
        here = (b < B) & (r <= K)
    rows, num_draft, target_row, position, step, candidate = locate(b, r, here, windows, K, S)
    here = here & (rows > 0)
    live = here & (r < rows)
    drafted = live & (r < num_draft)
    slot = slot_of(windows.slots, b, here)
    temperature = tl.load(temperature_ptr + slot, mask=here, other=0.0)
    seed = tl.load(seed_ptr + slot, mask=here, other=0)
    sampled = live & (temperature > 0.0)
    place = b * (K + 1) + r
    tops = of_tiles(scans.top, place, live, T, TP, -INFINITY)
    top, argmax = best_of(tops, of_tiles(scans.at, place, live, T, TP, NOWHERE))
    usable = is_usable(top)
    known = (candidate >= 0) & (candidate < V)
    draft_inverse = inverse_temperature(temperature)
    inverse = draft_inverse
    if SCALED:
        inverse = inverse * 0.0 + 1.0
    draft_top = draft_inverse
    if draft.logits is not None:
        draft_tops = of_tiles(scans.draft_top, place, drafted & sampled, T, TP, -INFINITY)
        draft_top = tl.max(draft_tops, axis=1)
        draft_usable = is_usable(draft_top)
    else:
        draft_usable = live
    bad = live & ((usable & (known | (r >= num_draft))) == 0)
    bad = bad | (drafted & sampled & (draft_usable == 0))

    asked = drafted & sampled & (bad == 0)
    top = tl.where(live & usable, top, 0.0)
    total = row_sum(scans.total, tops, place, sampled & usable, top, inverse, T, TP)
    place_of_logit = row_offset(target_row, target.stride) + candidate
    logit = tl.load(target.logits + place_of_logit, mask=asked, other=-INFINITY)
    logit = logit.to(tl.float32)
    logit = tl.where(logit >= threshold_of(target.thresholds, target_row, asked), logit, -INFINITY)
    p = exp((logit - top) * inverse)
    if draft.logits is not None:
        draft_top = tl.where(asked, draft_top, 0.0)
        draft_total = row_sum(scans.draft_total, draft_tops, place, asked, draft_top, draft_inverse, T, TP)
        offset = row_offset(slot, draft.slot_stride) + row_offset(step, draft.step_stride)
        said = asked & (candidate < draft.vocab)
        draft_logit = tl.load(draft.logits + (offset + candidate), mask=said, other=-INFINITY)
        draft_logit = draft_logit.to(tl.float32)
        draft_threshold = threshold_of(draft.thresholds, slot * S + step, asked)
        draft_logit = tl.where(draft_logit >= draft_threshold, draft_logit, -INFINITY)
        q = exp((draft_logit - draft_top) * draft_inverse)
    else:
        draft_total = total * 0.0 + 1.0
        q = draft_total
    w0, _w1, _w2, _w3 = noise_words(seed, position, r * 0 + ACCEPT, r * 0)
    needed = uniform(w0).to(tl.float64) * q.to(tl.float64) * total.to(tl.float64)
    accepted = (p > 0.0) & (needed <= p.to(tl.float64) * draft_total.to(tl.float64))

    # The first row that ends its sequence.
    missed = drafted & tl.where(sampled, accepted == 0, argmax != candidate)
    bonus = live & (r == num_draft)
    how = tl.where(bad, BAD, tl.where(sampled, tl.where(bonus, BONUS_TOKEN, RECOVERED), GREEDY))
    first, chosen = first_of(bad | missed | bonus, r, SEQS, RP)
    ended = pick(how, chosen, SEQS, RP)
    num_draft = pick(num_draft, r == 0, SEQS, RP)
    tile = tl.program_id(1)
    live = ended >= BONUS_TOKEN
    argmax = pick(argmax, chosen, SEQS, RP)
    if any_of(live):
        # One tile of that row: what the target has left over the draft, and the race for it.
        its_slot = pick(slot, chosen, SEQS, RP)
        its_seed = pick(seed, chosen, SEQS, RP)
        its_position = pick(position, chosen, SEQS, RP)
        its_row = pick(target_row, chosen, SEQS, RP)
        its_top = beside(pick(top, chosen, SEQS, RP))
        its_inverse = beside(tl.where(live, pick(inverse, chosen, SEQS, RP), 1.0))
        scale = part_of(pick(total, chosen, SEQS, RP), live)
        column = tile * TILE + tl.arange(0, TILE)
        x = load_tile(target.logits, row_offset(its_row, target.stride), live, column, V)
        scaled = (clean(x, threshold_of(target.thresholds, its_row, live)) - its_top) * its_inverse
        wanted = exp(scaled) * beside(scale)
        left = live & (ended == RECOVERED)
        if draft.logits is not None:
            its_step = pick(step, chosen, SEQS, RP)
            drafted_top = beside(pick(draft_top, chosen, SEQS, RP))
            drafted_inverse = beside(tl.where(left, pick(draft_inverse, chosen, SEQS, RP), 1.0))
            drafted_scale = part_of(pick(draft_total, chosen, SEQS, RP), left)
            its_offset = row_offset(its_slot, draft.slot_stride) + row_offset(its_step, draft.step_stride)
            d = load_tile(draft.logits, its_offset, left, column, draft.vocab)
            d = clean(d, threshold_of(draft.thresholds, its_slot * S + its_step, left))
            wanted = wanted - exp((d - drafted_top) * drafted_inverse) * beside(drafted_scale)
        else:
            its_candidate = pick(candidate, chosen, SEQS, RP)
            wanted = tl.where(column == beside(its_candidate), 0.0, wanted)
        wanted = tl.where(beside(left) & (wanted > 0.0), wanted, 0.0)
        purpose = tl.where(left, RESIDUAL, BONUS)
        race = exponential(uniform(noise_tile(its_seed, its_position, purpose, tile * TILE, TILE)))
        key, key_at = best_of(tl.div_rn(wanted, race), column)
        tl.store(keys.best + sequence * KT + tile, key, mask=live)
        tl.store(keys.at + sequence * KT + tile, key_at, mask=live)
        alone = live & (key <= 0.0)
        if any_of(alone):
            alone_key, alone_at = best_of(scaled - log(race), column)
            tl.store(own.best + sequence * KT + tile, alone_key, mask=alone)
            tl.store(own.at + sequence * KT + tile, alone_at, mask=alone)

    last = is_last(scans.num_ended, sequence, sequence < B, KT)
    if any_of(last) == 0:
        return
    drawn = last & (ended >= BONUS_TOKEN)
    best, at = best_tile(keys.best, keys.at, sequence, drawn, KT, KTP)
    empty = drawn & ((best > 0.0) == 0)
    own_best, own_at = best_tile(own.best, own.at, sequence, empty, KT, KTP)
    at = tl.where(empty, tl.where(own_best > -INFINITY, own_at, argmax), at)
    token = tl.where(ended >= BONUS_TOKEN, at, tl.where(ended == GREEDY, argmax, -1))
    accept_len = tl.where(ended == ACCEPTED, num_draft, first)
    verdict = Verdict(accept_len, token, ended == BAD, num_draft)
    deliver(sequence, last, verdict, windows, verdicts, commits, K, B, NS, WIDTH)
