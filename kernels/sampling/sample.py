"""Sampling one token per row: greedy, or the Gumbel-max of its softmax.

    temperature > 0   argmax_i (logits[r, i] - max_r) / temperature[r] + Gumbel(seed, position, purpose, i)
    else              argmax_i logits[r, i]
    the lowest index wins ties; -1 where a row holds NaN or +inf, or nothing but -inf

over the entries with logits[r, i] >= thresholds[r]. Bit for bit `pearl_rt.reference.judge.sample`, whatever
the number of rows. Three launches, grids from shapes only:

    scan_kernel  (row blocks, tiles)      one tile of a row: its maximum (+inf: cannot be used), and where
    key_kernel   (row blocks, key tiles)  the row's maximum, then one tile's best key; nothing if all greedy
    pick_kernel  (row blocks,)            the best of the tiles, by index among equals

logits [R, V] fp32, fp16 or bf16, rows at any stride; computed in fp32. temperature [R] fp32, seed and
positions [R] int64, thresholds [R] fp32 or None, out [R] int32 at any stride. kept [S, V] like logits gets
row r as its row kept_rows[r], [R] int64, each at most once; both or neither. Mutates out, kept and the
workspace.

    logits [1, 4] = [0.5, 2.0, 2.0, -inf], temperature [0.0]  ->  out [1]
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import interpreting
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from ..base.workspace import Part, carve, num_bytes
from .noise import EXACT, exponential, inverse_temperature, log, noise_tile, uniform

INFINITY = tl.constexpr(float("inf"))
NOWHERE = tl.constexpr(2147483647)  # an index behind every other


@dataclass(frozen=True)
class Config:
    """How a vocabulary is cut. Never chosen by the number of rows."""

    tile: int  # entries of a row that one program scans
    rows: int  # rows of one scanning program: 1 unless the vocabulary is small
    key_tile: int  # entries that one program draws noise for
    key_rows: int
    num_warps: int = 4


def config(vocab: int, rows: int = 1) -> Config:
    """The one configuration of a vocabulary.

    Only in the interpreter, where a program costs by its operations and hardly by its entries, are key tiles
    larger, and take programs as many rows as there are; no result depends on that.
    """
    tile = min(4096, max(16, triton.next_power_of_2(vocab)))
    key_tile = min(1024, tile)
    if interpreting():
        most, key_tile = (
            triton.next_power_of_2(max(rows, 1)),
            min(8192, max(16, triton.next_power_of_2(vocab))),
        )
        return Config(tile, min(most, 32768 // tile), key_tile, min(most, 32768 // key_tile))
    return Config(tile, 4096 // tile, key_tile, 1024 // key_tile)


@triton.jit
def rows_of(program, ROWS: tl.constexpr):
    """The rows of a program: [ROWS], or a scalar if it has one.

    What is computed of a scalar is scalar too, and its loads and stores have no layout. The time of compiling
    grows with the number of those that have one, and with the square of the operations.
    """
    rows = program
    if ROWS > 1:
        rows = program * ROWS + tl.arange(0, ROWS)
    return rows


@triton.jit
def beside(values):
    """Values of rows, [ROWS] or a scalar, as they broadcast against a tile: [ROWS, 1], or a scalar."""
    column = values
    if len(values.shape) > 0:
        column = values[:, None]
    return column


@triton.jit
def any_of(live):
    """Whether any row is live. live: [ROWS] or a scalar."""
    found = live
    if len(live.shape) > 0:
        found = tl.max(live.to(tl.int32), axis=0) == 1
    return found


@triton.jit
def row_offset(row, stride):
    """Where a row starts, in elements: 64 bits, as rows times vocabulary passes 2^31."""
    return row.to(tl.int64) * stride


@triton.jit
def load_tile(logits_ptr, offset, live, column, V):
    """[ROWS, TILE] fp32, or [TILE] of a scalar; -inf behind the vocabulary and in rows that are not live."""
    mask = beside(live) & (column < V)
    return tl.load(logits_ptr + (beside(offset) + column), mask=mask, other=-INFINITY).to(tl.float32)


@triton.jit
def threshold_of(thresholds_ptr, at, live):
    """Of rows: fp32; -inf without thresholds."""
    threshold = tl.where(live, -INFINITY, -INFINITY)
    if thresholds_ptr is not None:
        threshold = tl.load(thresholds_ptr + at, mask=live, other=0.0)
    return threshold


@triton.jit
def clean(x, threshold):
    """-inf in place of what cannot be used, or lies below the row's threshold. [ROWS, TILE], [ROWS]"""
    return tl.where((x < INFINITY) & (x >= beside(threshold)), x, -INFINITY)


@triton.jit
def best_of(keys, index):
    """The largest key of each row, and the lowest index that holds it: [ROWS], [ROWS] int32. index: as keys,
    or [TILE]."""
    best = tl.max(keys, axis=-1)
    return best, tl.min(tl.where(keys == beside(best), index, NOWHERE), axis=-1)


@triton.jit
def mark_bad(top, x):
    """top [ROWS], or +inf where x [ROWS, TILE] holds NaN or +inf."""
    return tl.where(tl.max(tl.where(x < INFINITY, 0, 1), axis=-1) > 0, INFINITY, top)


@triton.jit
def of_tiles(ptr, row, live, T, TP: tl.constexpr, other):
    """What T tiles of a row left: [ROWS, TP], or [TP] of a scalar row. row: into [.., T]."""
    tile = tl.arange(0, TP)
    return tl.load(ptr + (beside(row) * T + tile), mask=beside(live) & (tile < T), other=other)


@triton.jit
def best_tile(best_ptr, at_ptr, row, live, T, TP: tl.constexpr):
    """The best of T tiles, as best_of: [ROWS], [ROWS] int32."""
    best = of_tiles(best_ptr, row, live, T, TP, -INFINITY)
    return best_of(best, of_tiles(at_ptr, row, live, T, TP, NOWHERE))


@triton.jit
def top_tile(top_ptr, row, live, T, TP: tl.constexpr):
    """The largest of T tiles: [ROWS]."""
    return tl.max(of_tiles(top_ptr, row, live, T, TP, -INFINITY), axis=-1)


@triton.jit
def is_usable(top):
    """Of a row's maximum: no NaN, no +inf, and not all -inf."""
    return (top > -INFINITY) & (top < INFINITY)


@triton.jit(do_not_specialize=["R"])  # one binary for a row of each slot, and for all rows of their windows
def scan_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    thresholds_ptr,  # [R] fp32, or None
    kept_ptr,  # [S, V], rows at `kept_stride`, out; or None
    kept_stride,
    kept_rows_ptr,  # [R] int64
    top_ptr,  # [R, T] fp32, out
    at_ptr,  # [R, T] int32, out
    R,
    V,
    T,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = rows_of(tl.program_id(0), ROWS)
    tile = tl.program_id(1)
    live = row < R
    column = tile * TILE + tl.arange(0, TILE)
    x = load_tile(logits_ptr, row_offset(row, stride), live, column, V)
    if kept_ptr is not None:
        offset = row_offset(tl.load(kept_rows_ptr + row, mask=live, other=0), kept_stride)
        place = kept_ptr + (beside(offset) + column)
        tl.store(place, x.to(kept_ptr.dtype.element_ty), mask=beside(live) & (column < V))
    top, at = best_of(clean(x, threshold_of(thresholds_ptr, row, live)), column)
    tl.store(top_ptr + row * T + tile, mark_bad(top, x), mask=live)
    tl.store(at_ptr + row * T + tile, at, mask=live)


@triton.jit(do_not_specialize=["R", "purpose"])  # and for all purposes
def key_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    thresholds_ptr,  # [R] fp32, or None
    temperature_ptr,  # [R] fp32
    seed_ptr,  # [R] int64
    positions_ptr,  # [R] int64
    top_ptr,  # [R, T] fp32
    key_ptr,  # [R, KT] fp32, out
    key_at_ptr,  # [R, KT] int32, out
    R,
    V,
    T,
    KT,
    purpose,
    TP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = rows_of(tl.program_id(0), ROWS)
    tile = tl.program_id(1)
    live = row < R
    temperature = tl.load(temperature_ptr + row, mask=live, other=0.0)
    top = top_tile(top_ptr, row, live, T, TP)
    live = live & (temperature > 0.0) & is_usable(top)
    if any_of(live) == 0:
        return
    top = tl.where(live, top, 0.0)
    column = tile * TILE + tl.arange(0, TILE)
    x = load_tile(logits_ptr, row_offset(row, stride), live, column, V)
    kept = clean(x, threshold_of(thresholds_ptr, row, live))
    seed = tl.load(seed_ptr + row, mask=live, other=0)
    position = tl.load(positions_ptr + row, mask=live, other=0)
    words = noise_tile(seed, position, row * 0 + purpose, tile * TILE, TILE)
    scaled = (kept - beside(top)) * beside(inverse_temperature(temperature))
    key, at = best_of(scaled - log(exponential(uniform(words))), column)
    tl.store(key_ptr + row * KT + tile, key, mask=live)
    tl.store(key_at_ptr + row * KT + tile, at, mask=live)


@triton.jit(do_not_specialize=["R", "out_ptr", "out_stride"])  # one binary for the steps of all windows
def pick_kernel(
    temperature_ptr,  # [R] fp32
    top_ptr,  # [R, T] fp32
    at_ptr,  # [R, T] int32
    key_ptr,  # [R, KT] fp32
    key_at_ptr,  # [R, KT] int32
    out_ptr,  # [R] int32 at `out_stride`, out
    out_stride,
    R,
    T,
    KT,
    TP: tl.constexpr,
    KTP: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = rows_of(tl.program_id(0), ROWS)
    live = row < R
    top, at = best_tile(top_ptr, at_ptr, row, live, T, TP)
    usable = is_usable(top)
    sampled = live & usable & (tl.load(temperature_ptr + row, mask=live, other=0.0) > 0.0)
    key, key_at = best_tile(key_ptr, key_at_ptr, row, sampled, KT, KTP)
    token = tl.where(sampled & (key > -INFINITY), key_at, at)
    tl.store(out_ptr + row * out_stride, tl.where(usable, token, -1), mask=live)


def _parts(rows: int, vocab: int) -> list[Part]:
    shape = config(vocab)
    tiles, key_tiles = triton.cdiv(vocab, shape.tile), triton.cdiv(vocab, shape.key_tile)
    return [
        ((rows, tiles), torch.float32),
        ((rows, tiles), torch.int32),
        ((rows, key_tiles), torch.float32),
        ((rows, key_tiles), torch.int32),
    ]


def workspace_size(rows: int, vocab: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(rows, vocab))


@operator
def sample(
    logits: Annotated[Tensor, "float [R, V] rows"],
    temperature: Annotated[Tensor, "fp32 [R]"],
    seed: Annotated[Tensor, "int64 [R]"],
    positions: Annotated[Tensor, "int64 [R]"],
    purpose: int,
    out: Annotated[Tensor, "int32 [R] out strided"],
    thresholds: Annotated[Tensor | None, "fp32 [R]"],
    workspace: Annotated[Tensor, "out"],
    kept: Annotated[Tensor | None, "logits [S, V] rows out"] = None,
    kept_rows: Annotated[Tensor | None, "int64 [R]"] = None,
    pdl: bool = False,
) -> None:
    """One token per row of logits into out, and the rows into kept; see above. pdl:
    kernels/base/dependent.py.
    """
    rows, vocab = logits.shape
    if not 0 <= purpose <= 4:
        raise ValueError(f"sample: purpose is {purpose}, expected 0..4 (pearl_rt.reference.noise.Purpose)")
    if (kept is None) != (kept_rows is None):
        raise ValueError("sample: one of kept and kept_rows given: pass both, or neither")
    top, at, key, key_at = carve("sample", workspace, _parts(rows, vocab))
    if rows == 0:
        return
    shape = config(vocab, rows)
    tiles, key_tiles = top.shape[1], key.shape[1]
    blocks, key_blocks = triton.cdiv(rows, shape.rows), triton.cdiv(rows, shape.key_rows)
    padded, key_padded = triton.next_power_of_2(tiles), triton.next_power_of_2(key_tiles)
    options = {"num_warps": shape.num_warps, **dependent("sample", pdl), **EXACT}
    scan_kernel[(blocks, tiles)](
        *(logits, logits.stride(0), thresholds, kept, 0 if kept is None else kept.stride(0), kept_rows),
        *(top, at, rows, vocab, tiles, shape.rows, shape.tile),
        **options,
    )
    key_kernel[(key_blocks, key_tiles)](
        *(logits, logits.stride(0), thresholds, temperature, seed, positions, top, key, key_at),
        *(rows, vocab, tiles, key_tiles, int(purpose), padded, shape.key_rows, shape.key_tile),
        **options,
    )
    pick_kernel[(key_blocks,)](
        *(temperature, top, at, key, key_at, out, out.stride(0)),
        *(rows, tiles, key_tiles, padded, key_padded, shape.key_rows),
        **options,
    )
