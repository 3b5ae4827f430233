"""The rows of a window, inside kernels: which logits, candidate and position a row has, and one tile of it.

Two layouts: ragged (judge.py) and the state of a running batch (verify.py, STATE). Knows
nothing of verdicts. judge_scan_kernel: grid (row blocks, tiles, 1 for the target or 2 for the draft too);
a program writes one tile's maximum (+inf if an entry cannot be used), the index of it, and the sum of
exp((x - maximum) / temperature)."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..sampling.noise import exp, inverse_temperature
from ..sampling.sample import INFINITY, best_of, clean, load_tile, mark_bad, row_offset

# How a window ended, as one kernel hands it to the next.
STANDS = tl.constexpr(0)  # all rows stood, and no row is left
BAD = tl.constexpr(1)
GREEDY = tl.constexpr(2)
OWN = tl.constexpr(3)  # a bonus token, sampled from the target alone
LEFT = tl.constexpr(4)  # a token from the residual

RUNNING = tl.constexpr(1)  # finish_reason of a slot that is judged


@triton.jit
def locate(
    b,  # [X] sequence
    r,  # [X] row of it
    live,  # [X]
    rows_ptr,  # cu_num_logits [B + 1]; of a state: num_rows [B]
    num_draft_ptr,  # [B]; of a state: the window's length
    positions_ptr,  # [N] int64; of a state: committed [B] int32
    draft_ids_ptr,  # [B, K]; of a state: the window
    token_ids_ptr,  # None; of a state: [B, capacity]
    pending_ptr,  # None; of a state: [B]
    finish_ptr,  # None; of a state: finish_reason [B]
    round_ptr,  # None; of a state: [B]
    capacity,
    K,
    S,  # rows of draft logits per slot
    MAX_ROWS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Row r of sequence b: rows, num_draft, target row (int64), position (int64), draft step, candidate."""
    if STATE:
        live = live & (tl.load(finish_ptr + b, mask=live, other=0) == RUNNING)
        rows = tl.minimum(tl.load(rows_ptr + b, mask=live, other=0), MAX_ROWS)
        window = tl.load(num_draft_ptr + b, mask=live, other=0)
        window = tl.where(tl.load(round_ptr + b, mask=live, other=0) == 0, 0, window)
        pending = tl.load(pending_ptr + b, mask=live, other=0)
        position = tl.load(positions_ptr + b, mask=live, other=0).to(tl.int64) + r
        num_draft = tl.minimum(rows, pending + window)
        target_row = b.to(tl.int64) * MAX_ROWS + r
        step = (position % S).to(tl.int32)
        asked = live & (r < num_draft)
        place = row_offset(b, capacity) + position
        old = tl.load(token_ids_ptr + place, mask=asked & (r < pending), other=-1)
        new = tl.load(draft_ids_ptr + b * K + (r - pending), mask=asked & (r >= pending), other=-1)
        candidate = tl.where(r < pending, old, new)
    else:
        first = tl.load(rows_ptr + b, mask=live, other=0)
        rows = tl.minimum(tl.load(rows_ptr + b + 1, mask=live, other=0) - first, MAX_ROWS)
        num_draft = tl.minimum(tl.minimum(tl.load(num_draft_ptr + b, mask=live, other=0), K), rows)
        target_row = first.to(tl.int64) + r
        position = tl.load(positions_ptr + target_row, mask=live & (r < rows), other=0)
        step = r
        candidate = tl.load(draft_ids_ptr + b * K + r, mask=live & (r < num_draft), other=-1)
    return rows, num_draft, target_row, position, step, candidate


@triton.jit
def slot_of(slots_ptr, b, live):
    """Where sequence b keeps its draft logits, temperature and seed."""
    slot = b
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + b, mask=live, other=0)
    return slot


@triton.jit
def threshold_of(thresholds_ptr, at, live):
    """[X] fp32; -inf without thresholds."""
    threshold = tl.where(live, -INFINITY, -INFINITY)
    if thresholds_ptr is not None:
        threshold = tl.load(thresholds_ptr + at, mask=live, other=0.0)
    return threshold


@triton.jit
def first_of(stops, r, SEQS: tl.constexpr, RP: tl.constexpr):
    """The first row of each sequence that stops it, or RP: [SEQS]; and the mask of those rows: [SEQS * RP].

    stops, r: [SEQS * RP]. One sequence per program goes by scalars: a reshaped layout would spread to all
    that follows, every lane holding the same.
    """
    if SEQS == 1:
        row = tl.min(tl.where(stops, r, RP), axis=0)
        return tl.full([1], row, tl.int32), r == row
    rows = tl.reshape(tl.where(stops, r, RP), [SEQS, RP])
    first = tl.min(rows, axis=1)
    chosen = tl.where(rows == first[:, None], rows, RP) < RP
    return first, tl.reshape(chosen.to(tl.int32), [SEQS * RP]) != 0


@triton.jit
def pick(values, chosen, SEQS: tl.constexpr, RP: tl.constexpr):
    """Of values [SEQS * RP], the one of each sequence that `chosen` [SEQS * RP] marks, or 0: [SEQS]."""
    marked = tl.where(chosen, values, 0)
    if SEQS == 1:
        return tl.full([1], tl.sum(marked, axis=0), values.dtype)
    return tl.sum(tl.reshape(marked, [SEQS, RP]), axis=1)


@triton.jit
def scan_tile(x, threshold, inverse, column, SUM: tl.constexpr):
    """Of a tile [ROWS, TILE]: maximum (+inf: bad), its index, sum of exp((x - maximum) * inverse)."""
    kept = clean(x, threshold)
    top, at = best_of(kept, column[None, :])
    total = top
    if SUM:
        safe = tl.where(top > -INFINITY, top, 0.0)
        total = tl.sum(exp((kept - safe[:, None]) * inverse[:, None]), axis=1)
    return mark_bad(top, x), at, total


@triton.jit
def judge_scan_kernel(
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
    draft_ptr,  # [slots, S, Vd], or None
    draft_stride,
    step_stride,
    draft_thresholds_ptr,  # [slots, S] or None
    temperature_ptr,  # [slots]
    top_ptr,  # [B * MAX_ROWS, T] fp32, out
    at_ptr,  # [B * MAX_ROWS, T] int32, out
    sum_ptr,  # [B * MAX_ROWS, T] fp32, out
    draft_top_ptr,  # likewise, of the draft
    draft_sum_ptr,
    N,  # B * MAX_ROWS
    V,
    VD,  # entries that the draft sampled from: min(V, Vd)
    T,
    SUM: tl.constexpr,  # rejection
    SCALED: tl.constexpr,  # target logits come divided by the temperature
    MAX_ROWS: tl.constexpr,
    STATE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    live = place < N
    b = place // MAX_ROWS
    r = place % MAX_ROWS
    rows, num_draft, target_row, _position, step, _candidate = locate(
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
    inverse = inverse_temperature(temperature)
    column = tile * TILE + tl.arange(0, TILE)
    if tl.program_id(2) == 0:
        if tl.max(live.to(tl.int32), axis=0) == 1:
            if SCALED:
                inverse = inverse * 0.0 + 1.0
            x = load_tile(target_ptr, row_offset(target_row, target_stride), live, column, V)
            threshold = threshold_of(target_thresholds_ptr, target_row, live)
            top, at, total = scan_tile(x, threshold, inverse, column, SUM)
            tl.store(top_ptr + place * T + tile, top, mask=live)
            tl.store(at_ptr + place * T + tile, at, mask=live)
            if SUM:
                tl.store(sum_ptr + place * T + tile, total, mask=live)
    elif draft_ptr is not None:
        live = live & (r < num_draft) & (temperature > 0.0)
        if tl.max(live.to(tl.int32), axis=0) == 1:
            offset = row_offset(slot, draft_stride) + row_offset(step, step_stride)
            x = load_tile(draft_ptr, offset, live, column, VD)
            threshold = threshold_of(draft_thresholds_ptr, slot * S + step, live)
            top, at, total = scan_tile(x, threshold, inverse, column, SUM)
            tl.store(draft_top_ptr + place * T + tile, top, mask=live)
            tl.store(draft_sum_ptr + place * T + tile, total, mask=live)
