"""Thresholds for min-p, top-k and top-p: one fp32 per row on the raw logits. A token is kept iff logit >=
threshold.

    min_p   keep x >= max + log(min_p) * temperature           i.e. p(x) >= min_p * p(argmax)
    top_k   of all, keep the k largest, and what ties with the last of them
    top_p   keep x while the mass of strictly larger logits is < top_p of what min_p and top_k left
    threshold = the largest of the three; -inf where a row is greedy, cannot be used, or has no filter on

in vLLM's order: temperature, min_p, top_k, top_p. No sort. Two launches, grids from shapes only:

    group_kernel      (rows, tiles)  the maxima of one tile's groups of entries
    threshold_kernel  (rows, tiles)  a bound that the threshold cannot be below, from the maxima; one tile's
                                     candidates, which are its entries at and above the bound, into the row's
                                     list. The row's last program to end halves the range of ranks, an
                                     order-preserving integer of the logit, until one candidate is left

The bound: of top_k, a value that k groups reach; of top_p, what all V entries together would need for the
mass that is left out. A row with more than LIST candidates is searched where it lies. Rows whose filters are
off return at once. Masses are sums of integers, exp(..) in units of 2^-44 at vocabularies up to 2^18: they
have the same bits in every order, and are nearer to the definition's fp64 than a sum in fp32.

logits [R, V] fp32, fp16 or bf16, rows at any stride; temperature [R] fp32; top_k [R] int32 (off unless 1
.. V - 1), top_p [R] fp32 (off unless < 1), min_p [R] fp32 (off unless > 0), or None; thresholds [R] fp32,
out. Mutates thresholds and the workspace.

    logits [1, 4] = [1, 3, 3, 0], top_k [2]  ->  thresholds [3]
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base.dependent import await_previous, dependent
from ..base.library import operator
from ..base.workspace import Part, carve, num_bytes
from .noise import EXACT, exp, inverse_temperature, log
from .sample import INFINITY, is_usable, row_offset

GROUPS = 8  # of a tile
LIST = 16384  # candidates of a row that are written out
HALVINGS = tl.constexpr(10)  # of the range of top_k's bound


class Asked(NamedTuple):
    """[R] each, or None."""

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None


class Found(NamedTuple):
    """What programs of a row tell each other."""

    tops: Tensor  # [R, T * GROUPS] fp32, maxima; +inf: an entry cannot be used
    candidates: Tensor  # [R, LIST] of the logits' dtype
    num_candidates: Tensor  # [R] int32
    num_ended: Tensor  # [R] int32, programs
    mass: Tensor  # [R] int64, of all entries that min_p left; of rows with top_p and no top_k


@triton.jit
def rank_of(x):
    """uint32 that orders as fp32 does; both zeros alike."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -1, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(rank):
    """The fp32 of a rank."""
    bits = rank.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, bits ^ -1).to(tl.float32, bitcast=True)


@triton.jit
def asked_of(asked, row, V):
    """temperature, k (0: off), top_p (1: off), min_p (0: off) of a row; and whether any is on."""
    temperature = tl.load(asked.temperature + row)
    k, share, least = 0, 1.0, 0.0
    if asked.top_k is not None:
        k = tl.load(asked.top_k + row)
        k = tl.where((k > 0) & (k < V), k, 0)
    if asked.top_p is not None:
        share = tl.load(asked.top_p + row)
    if asked.min_p is not None:
        least = tl.load(asked.min_p + row)
    return temperature, k, share, least, (temperature > 0.0) & ((k > 0) | (share < 1.0) | (least > 0.0))


@triton.jit
def units(x, top, inverse, UNIT: tl.constexpr):
    """exp((x - top) * inverse) in units, int64."""
    return (exp((x - top) * inverse) * UNIT).to(tl.int64)


@triton.jit
def reached_by(tops, k, top):
    """A value that at least k of these maxima reach, near the largest one; -inf if there are less."""
    low = rank_of(top - INFINITY)
    high = rank_of(top) + 1
    for _ in range(HALVINGS):
        middle = low + ((high - low) >> 1)
        reaches = tl.sum((rank_of(tops) >= middle).to(tl.int32), axis=0) >= k
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle)
    return value_of(low)


@triton.jit
def weight_from(
    rank, source, n, top, inverse, IS_MASS: tl.constexpr, UNIT: tl.constexpr, CHUNK: tl.constexpr
):
    """Of the n entries of a source, those of at least a rank: how many, and their mass."""
    count = tl.full([CHUNK], 0, tl.int32)
    mass = tl.full([CHUNK], 0, tl.int64)
    for first in range(0, n, CHUNK):
        at = first + tl.arange(0, CHUNK)
        x = tl.load(source + at, mask=at < n, other=-INFINITY).to(tl.float32)
        among = (at < n) & (rank_of(x) >= rank)
        count += among.to(tl.int32)
        if IS_MASS:
            mass += tl.where(among, units(x, top, inverse, UNIT), 0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


@triton.jit
def last_that_reaches(
    goal,
    low,  # a value at and above which the goal is reached
    held,  # entries there, at most
    source,
    n,
    top,
    inverse,
    IS_MASS: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The largest entry of a source at and above which the count, or the mass, reaches a goal."""
    low = rank_of(low)
    high = rank_of(top) + 1
    above = held * 0  # entries of at least `high`
    while (high - low > 1) & (held - above > 1):
        middle = low + ((high - low) >> 1)
        count, mass = weight_from(middle, source, n, top, inverse, IS_MASS, UNIT, CHUNK)
        reaches = mass >= goal if IS_MASS else count >= goal
        low = tl.where(reaches, middle, low)
        held = tl.where(reaches, count, held)
        high = tl.where(reaches, high, middle)
        above = tl.where(reaches, above, count)
    best = tl.full([CHUNK], -INFINITY, tl.float32)
    for first in range(0, n, CHUNK):
        at = first + tl.arange(0, CHUNK)
        x = tl.load(source + at, mask=at < n, other=-INFINITY).to(tl.float32)
        best = tl.maximum(best, tl.where(rank_of(x) < high, x, -INFINITY))
    return tl.max(best, axis=0)


@triton.jit
def group_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    asked,  # Asked
    found,  # Found, out: tops; zeros in what is counted
    V,
    T,
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0)
    tile = tl.program_id(1)
    _temperature, _k, _share, _least, on = asked_of(asked, row, V)
    if on == 0:
        return
    group = tl.arange(0, GROUPS)
    column = tile * TILE + group[:, None] * (TILE // GROUPS) + tl.arange(0, TILE // GROUPS)[None, :]
    x = tl.load(logits_ptr + row_offset(row, stride) + column, mask=column < V, other=-INFINITY).to(
        tl.float32
    )
    tops = tl.max(tl.where(x < INFINITY, x, INFINITY), axis=1)
    tl.store(found.tops + (row_offset(row, T) + tile) * GROUPS + group, tops)
    if tile == 0:
        tl.store(found.num_candidates + row, 0)
        tl.store(found.num_ended + row, 0)
        tl.store(found.mass + row, 0)


@triton.jit(do_not_specialize=["pitch"])
def threshold_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    asked,  # Asked
    found,  # Found
    thresholds_ptr,  # [R] fp32, out
    pitch,  # of the lists of candidates
    V,
    T,
    LIST: tl.constexpr,
    GROUPS: tl.constexpr,
    GP: tl.constexpr,  # power of two, >= T * GROUPS
    UNIT: tl.constexpr,  # units of mass in 1: V times that is below 2^63
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0)
    tile = tl.program_id(1)
    temperature, k, share, least, on = asked_of(asked, row, V)
    if on == 0:
        if tile == 0:
            tl.store(thresholds_ptr + row, -INFINITY)
        return
    group = tl.arange(0, GP)
    tops = tl.load(found.tops + row_offset(row, T) * GROUPS + group, mask=group < T * GROUPS, other=-INFINITY)
    top = tl.max(tops, axis=0)
    floor = top - INFINITY
    if asked.min_p is not None:
        lowest = top + log(tl.maximum(least, 1.1754943508222875e-38)) * temperature
        floor = tl.where(least > 0.0, tl.minimum(lowest, top), floor)
    if (is_usable(top) == 0) | ((k == 0) & (share >= 1.0)):
        if tile == 0:
            tl.store(thresholds_ptr + row, tl.where(is_usable(top), floor, -INFINITY))
        return

    inverse = inverse_temperature(temperature)
    weighed = k == 0  # then top_p's goal is a part of all that min_p left
    if weighed:
        largest = tl.sum(tl.where(tops >= floor, exp((tops - top) * inverse), 0.0), axis=0)
        each = tl.div_rn((1.0 - share) * largest, largest * 0.0 + V)
        # Further down by 1/8: sums and products are rounded.
        bound = top + tl.div_rn(log(tl.maximum(each, 1.1754943508222875e-38)) - 0.125, inverse)
    else:
        bound = reached_by(tops, k, top)
    bound = tl.maximum(tl.minimum(bound, top), floor)

    column = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + row_offset(row, stride) + column, mask=column < V, other=-INFINITY)
    value = x.to(tl.float32)
    if weighed:
        left = (column < V) & (value >= floor)
        mass = tl.sum(tl.where(left, units(value, top, inverse, UNIT), 0), axis=0)
        tl.atomic_add(found.mass + row, mass, sem="relaxed")
    kept = ((column < V) & (value >= bound)).to(tl.int32)
    count = tl.sum(kept, axis=0)
    source = found.candidates + row_offset(row, pitch)
    if count > 0:
        place = tl.atomic_add(found.num_candidates + row, count, sem="relaxed") + tl.cumsum(kept, axis=0) - 1
        tl.store(source + place, x, mask=(kept > 0) & (place < LIST))
    tl.debug_barrier()  # every thread's stores come before the release of the one that says so
    if tl.atomic_add(found.num_ended + row, 1, sem="acq_rel") != T - 1:
        return

    held = tl.load(found.num_candidates + row)
    n = held
    if held > LIST:
        source = logits_ptr + row_offset(row, stride)
        n = held * 0 + V
    threshold = floor
    if k > 0:  # noqa: SIM102  # known to the compiler where top_k is None
        if held >= k:  # else min_p has left less
            kth = last_that_reaches(k, bound, held, source, n, top, inverse, False, UNIT, CHUNK)
            threshold = tl.maximum(floor, kth)
    if share < 1.0:
        total = tl.load(found.mass + row)
        if k > 0:
            held, total = weight_from(rank_of(threshold), source, n, top, inverse, True, UNIT, CHUNK)
        wanted = share.to(tl.float64) * total.to(tl.float64)
        goal = wanted.to(tl.int64)
        goal = tl.maximum(goal + (goal.to(tl.float64) < wanted).to(tl.int64), 1)
        low = tl.maximum(threshold, bound)
        last = last_that_reaches(goal, low, held, source, n, top, inverse, True, UNIT, CHUNK)
        threshold = tl.maximum(threshold, last)
    tl.store(thresholds_ptr + row, threshold)


def _tile(vocab: int) -> int:
    return min(1024, max(16, triton.next_power_of_2(vocab)))


def _parts(rows: int, vocab: int) -> list[Part]:
    return [
        ((rows, triton.cdiv(vocab, _tile(vocab)) * GROUPS), torch.float32),
        ((rows, min(vocab, LIST)), torch.float32),
        ((rows,), torch.int32),
        ((rows,), torch.int32),
        ((rows,), torch.int64),
    ]


def workspace_size(rows: int, vocab: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(rows, vocab))


@operator
def filters(
    logits: Annotated[Tensor, "float [R, V] rows"],
    temperature: Annotated[Tensor, "fp32 [R]"],
    top_k: Annotated[Tensor | None, "int32 [R]"],
    top_p: Annotated[Tensor | None, "fp32 [R]"],
    min_p: Annotated[Tensor | None, "fp32 [R]"],
    thresholds: Annotated[Tensor, "fp32 [R] out"],
    workspace: Annotated[Tensor, "out"],
    pdl: bool = False,
) -> None:
    """One threshold per row of logits; see above. pdl: kernels/base/dependent.py."""
    rows, vocab = logits.shape
    tops, candidates, *counts = carve("filters", workspace, _parts(rows, vocab))
    if rows == 0:
        return
    tile, capacity = _tile(vocab), candidates.shape[1]
    candidates = candidates.view(logits.dtype)
    tiles, grid = triton.cdiv(vocab, tile), (rows, triton.cdiv(vocab, tile))
    given = (
        logits,
        logits.stride(0),
        Asked(temperature, top_k, top_p, min_p),
        Found(tops, candidates, *counts),
    )
    options = {**dependent("filters", pdl), **EXACT}
    group_kernel[grid](*given, vocab, tiles, GROUPS=GROUPS, TILE=tile, **options)
    threshold_kernel[grid](
        *(*given, thresholds, candidates.stride(0), vocab, tiles),
        LIST=capacity,
        GROUPS=GROUPS,
        GP=triton.next_power_of_2(tiles * GROUPS),
        UNIT=2.0 ** (62 - (vocab - 1).bit_length()),
        TILE=tile,
        CHUNK=min(2048, tile * 2),
        num_warps=8,
        **options,
    )
