"""The rows of a window, inside kernels: which logits, candidate and position a row has, and one tile of it.

Two layouts: ragged (judge.py) and the state of a running batch (verify.py, STATE). Knows
nothing of verdicts. judge_scan_kernel: grid (row blocks, tiles, 1 for the target or 2 for the draft too);
a program writes one tile's maximum (+inf if an entry cannot be used), the index of it, and the sum of
exp((x - maximum) / temperature), and one of each sequence clears the count of the next launch."""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pearl_rt import state

from ..base.dependent import await_previous
from ..sampling.noise import exp, inverse_temperature
from ..sampling.sample import (
    INFINITY,
    any_of,
    beside,
    best_of,
    clean,
    load_tile,
    mark_bad,
    row_offset,
    rows_of,
    threshold_of,
)

# How a window ended.
ACCEPTED = tl.constexpr(0)  # all candidates were accepted, and there is no bonus row
BAD = tl.constexpr(1)
GREEDY = tl.constexpr(2)  # the argmax of a row, or coupled: the target's own token
BONUS_TOKEN = tl.constexpr(3)  # a bonus token, sampled from the target alone
RECOVERED = tl.constexpr(4)  # a token from the residual, in place of a rejected one
RUNNING = tl.constexpr(state.RUNNING)  # finish_reason of a slot that is judged


class Row(NamedTuple):
    """Row r of sequence b. The first two are of b's shape."""

    rows: Any  # of its sequence
    num_draft: Any  # of these have a candidate
    target: Any  # int64, its row of target logits
    position: Any  # int64
    step: Any  # its row of the slot's draft logits
    candidate: Any


class Verdict(NamedTuple):
    """How the window of each sequence ended: [SEQS] each, or scalars of the one sequence of a program."""

    accept_len: Any
    token: Any  # that follows, or -1
    bad: Any  # int1
    num_draft: Any  # candidates that were judged


@triton.jit
def locate(b, r, live, windows, K, S):
    """Row r of sequence b: a Row. b and live: [X], or scalars; then r is a scalar too, or any rows of b."""
    if windows.token_ids is not None:
        live = live & (tl.load(windows.finish_reason + b, mask=live, other=0) == RUNNING)
        rows = tl.minimum(tl.load(windows.num_rows + b, mask=live, other=0), K + 1)
        window = tl.load(windows.num_draft + b, mask=live, other=0)
        window = tl.where(tl.load(windows.round + b, mask=live, other=0) == 0, 0, window)
        pending = tl.load(windows.pending + b, mask=live, other=0)
        position = tl.load(windows.positions + b, mask=live, other=0).to(tl.int64) + r
        num_draft = tl.minimum(rows, pending + window)
        target_row = row_offset(b, K + 1) + r
        step = (position % S).to(tl.int32)
        asked = live & (r < num_draft)
        place = row_offset(b, windows.capacity) + position
        old = tl.load(windows.token_ids + place, mask=asked & (r < pending), other=-1)
        new = windows.draft_ids + b * K + (r - pending)
        candidate = tl.where(r < pending, old, tl.load(new, mask=asked & (r >= pending), other=-1))
    else:
        first = tl.load(windows.num_rows + b, mask=live, other=0)
        rows = tl.minimum(tl.load(windows.num_rows + b + 1, mask=live, other=0) - first, K + 1)
        num_draft = tl.minimum(tl.load(windows.num_draft + b, mask=live, other=0), K)
        num_draft = tl.minimum(num_draft, rows)
        target_row = first.to(tl.int64) + r
        position = tl.load(windows.positions + target_row, mask=live & (r < rows), other=0)
        step = r
        candidate = tl.load(windows.draft_ids + (b * K + r), mask=live & (r < num_draft), other=-1)
    return Row(rows, num_draft, target_row, position, step, candidate)


@triton.jit
def slot_of(slots_ptr, b, live):
    """Where sequence b keeps its draft logits, temperature and seed."""
    slot = b
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + b, mask=live, other=0)
    return slot


@triton.jit
def first_of(stops, r, SEQS: tl.constexpr, RP: tl.constexpr):
    """The first row of each sequence that stops it, or RP: [SEQS]; and the mask of those rows: [SEQS * RP].

    stops, r: [SEQS * RP]. Of one sequence the first is a scalar.
    """
    if SEQS == 1:
        first = tl.min(tl.where(stops, r, RP), axis=0)
        chosen = r == first
    else:
        rows = tl.reshape(tl.where(stops, r, RP), [SEQS, RP])
        first = tl.min(rows, axis=1)
        chosen = tl.where(rows == first[:, None], rows, RP) < RP
        chosen = tl.reshape(chosen.to(tl.int32), [SEQS * RP]) != 0
    return first, chosen


@triton.jit
def pick(values, chosen, SEQS: tl.constexpr, RP: tl.constexpr):
    """Of values [SEQS * RP], the one of each sequence that `chosen` [SEQS * RP] marks, or 0: [SEQS].

    Of one sequence a scalar; a value that is a scalar already is of all its rows.
    """
    picked = values
    if len(values.shape) > 0:
        marked = tl.where(chosen, values, 0)
        if SEQS == 1:
            picked = tl.sum(marked, axis=0)
        else:
            picked = tl.sum(tl.reshape(marked, [SEQS, RP]), axis=1)
    return picked


@triton.jit
def scan_tile(x, threshold, inverse, column, SUM: tl.constexpr):
    """Of a tile [ROWS, TILE]: maximum (+inf: bad), its index, sum of exp((x - maximum) * inverse)."""
    kept = clean(x, threshold)
    top, at = best_of(kept, column)
    total = top
    if SUM:
        safe = tl.where(top > -INFINITY, top, 0.0)
        total = tl.sum(exp((kept - beside(safe)) * beside(inverse)), axis=-1)
    return mark_bad(top, x), at, total


@triton.jit(do_not_specialize=["N", "K", "S"])  # one binary for all windows
def judge_scan_kernel(
    windows,  # Windows
    target,  # TargetLogits
    draft,  # DraftLogits
    temperature_ptr,  # [slots]
    scans,  # Scans, out
    N,  # B * (K + 1)
    K,
    S,
    V,
    T,
    SCALED: tl.constexpr,  # target logits come divided by the temperature
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    SUM: tl.constexpr = scans.total is not None
    place = rows_of(tl.program_id(0), ROWS)
    tile = tl.program_id(1)
    live = place < N
    b = place // (K + 1)
    r = place % (K + 1)
    if (tile == 0) & (tl.program_id(2) == 0):
        tl.store(scans.num_ended + b, 0, mask=live & (r == 0))
    row = locate(b, r, live, windows, K, S)
    live = live & (r < row.rows)
    slot = slot_of(windows.slots, b, live)
    temperature = tl.load(temperature_ptr + slot, mask=live, other=0.0)
    inverse = inverse_temperature(temperature)
    column = tile * TILE + tl.arange(0, TILE)
    if tl.program_id(2) == 0:
        if any_of(live):
            if SCALED:
                inverse = inverse * 0.0 + 1.0
            x = load_tile(target.logits, row_offset(row.target, target.stride), live, column, V)
            threshold = threshold_of(target.thresholds, row.target, live)
            top, at, total = scan_tile(x, threshold, inverse, column, SUM)
            tl.store(scans.top + place * T + tile, top, mask=live)
            tl.store(scans.at + place * T + tile, at, mask=live)
            if SUM:
                tl.store(scans.total + place * T + tile, total, mask=live)
    elif draft.logits is not None:
        live = live & (r < row.num_draft) & (temperature > 0.0)
        if any_of(live):
            offset = row_offset(slot, draft.slot_stride) + row_offset(row.step, draft.step_stride)
            x = load_tile(draft.logits, offset, live, column, draft.vocab)
            threshold = threshold_of(draft.thresholds, slot * S + row.step, live)
            top, at, total = scan_tile(x, threshold, inverse, column, SUM)
            tl.store(scans.draft_top + place * T + tile, top, mask=live)
            tl.store(scans.draft_total + place * T + tile, total, mask=live)
