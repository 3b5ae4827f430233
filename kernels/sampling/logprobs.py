"""Log-probabilities of one token per row, and of the likeliest: of logits as they are, before any parameter.

    logprob(i) = (x[i] - max) - log(sum exp(x - max))         rank(i) = 1 + the number of larger logits
    out[r]     = the token's own, then the k likeliest: larger logits first, lower ids first among equals

pearl_rt/reference/logprobs.py on a device, and csrc/sampling/logprobs.h: the sum is fp64, rounded once to
fp32, so that only its order of addition can make them differ. Three launches, grids from shapes only:

    tile_kernel   (rows, tiles)  one tile's maximum, its logits above the token's, its k best keys
    mass_kernel   (rows, tiles)  one tile's sum of exp(x - the row's maximum)
    merge_kernel  (rows,)        the best of the tiles

A key is 63 bits, the logit's rank_of over the complement of its id's bits, so that keys order as the list
does. Rows whose token is -1 cost nothing and are left alone in all outputs.

logits [R, V] fp32, fp16 or bf16, rows at any stride, usable (no NaN, no +inf, not all -inf) where token_ids
[R] int32 is a token, 0 .. V - 1; 0 <= k <= min(V, MAX_K). Out: ids and ranks [R, 1 + k] int32, logprobs [R,
1 + k] fp32. Mutates these and the workspace. Reads each row twice.

    logits [1, 4] = [0, 2, 2, -inf], token_ids [0], k 2  ->  ids [0, 1, 2], ranks [3, 1, 1]
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base.checks import check
from ..base.dependent import await_previous, dependent
from ..base.library import operator
from ..base.workspace import Part, carve, num_bytes
from .filters import rank_of, value_of
from .noise import EXACT, exp, log
from .sample import INFINITY, NOWHERE, row_offset

MAX_K = 20


@triton.jit
def tile_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    token_ids_ptr,  # [R] int32
    top_ptr,  # [R, T] fp32, out
    above_ptr,  # [R, T] int32, out
    best_ptr,  # [R, T, K] int64, out; 0 behind the tile's entries
    V,
    T,
    K: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0)
    tile = tl.program_id(1)
    token = tl.load(token_ids_ptr + row)
    if token < 0:
        return
    own = tl.load(logits_ptr + row_offset(row, stride) + token).to(tl.float32)
    column = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + row_offset(row, stride) + column, mask=column < V, other=-INFINITY).to(
        tl.float32
    )
    place = row_offset(row, T) + tile
    tl.store(top_ptr + place, tl.max(x, axis=0))
    tl.store(above_ptr + place, tl.sum((x > own).to(tl.int32), axis=0))
    keys = tl.where(column < V, (rank_of(x).to(tl.int64) << 31) | (column ^ NOWHERE).to(tl.int64), 0)
    for i in range(K):
        best = tl.max(keys, axis=0)
        tl.store(best_ptr + place * K + i, best)
        keys = tl.where(keys == best, 0, keys)


@triton.jit
def row_top(top_ptr, row, T, TP: tl.constexpr):
    """A row's maximum, from its tiles."""
    tile = tl.arange(0, TP)
    return tl.max(tl.load(top_ptr + row * T + tile, mask=tile < T, other=-INFINITY), axis=0)


@triton.jit
def mass_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    token_ids_ptr,  # [R] int32
    top_ptr,  # [R, T] fp32
    mass_ptr,  # [R, T] fp64, out
    V,
    T,
    TP: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0)
    tile = tl.program_id(1)
    if tl.load(token_ids_ptr + row) < 0:
        return
    top = row_top(top_ptr, row, T, TP)
    column = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + row_offset(row, stride) + column, mask=column < V, other=-INFINITY).to(
        tl.float32
    )
    tl.store(mass_ptr + row_offset(row, T) + tile, tl.sum(exp(x - top).to(tl.float64), axis=0))


@triton.jit
def merge_kernel(
    logits_ptr,  # [R, V], rows at `stride`
    stride,
    token_ids_ptr,  # [R] int32
    top_ptr,  # [R, T] fp32
    above_ptr,  # [R, T] int32
    best_ptr,  # [R, T, K] int64
    mass_ptr,  # [R, T] fp64
    ids_ptr,  # [R, 1 + K] int32, out
    logprobs_ptr,  # [R, 1 + K] fp32, out
    ranks_ptr,  # [R, 1 + K] int32, out
    T,
    K: tl.constexpr,
    KP: tl.constexpr,  # power of two, >= K
    TP: tl.constexpr,  # power of two, >= T
    BEST: tl.constexpr,  # power of two, >= T * K
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0)
    token = tl.load(token_ids_ptr + row)
    if token < 0:
        return
    tile = tl.arange(0, TP)
    first = row_offset(row, T)
    top = row_top(top_ptr, row, T, TP)
    mass = log(tl.sum(tl.load(mass_ptr + first + tile, mask=tile < T, other=0.0), axis=0).to(tl.float32))
    above = tl.sum(tl.load(above_ptr + first + tile, mask=tile < T, other=0), axis=0)
    own = tl.load(logits_ptr + row_offset(row, stride) + token).to(tl.float32)
    out = row_offset(row, 1 + K)
    tl.store(ids_ptr + out, token)
    tl.store(logprobs_ptr + out, (own - top) - mass)
    tl.store(ranks_ptr + out, 1 + above)
    if K > 0:
        entry = tl.arange(0, BEST)
        keys = tl.load(best_ptr + first * K + entry, mask=entry < T * K, other=0)
        lane = tl.arange(0, KP)
        chosen = tl.zeros([KP], tl.int64)
        for i in range(K):
            best = tl.max(keys, axis=0)
            chosen = tl.where(lane == i, best, chosen)
            keys = tl.where(keys == best, 0, keys)
        order = chosen >> 31
        larger = (order[None, :] > order[:, None]) & (lane < K)[None, :]
        place = out + 1 + lane
        token = (chosen & 0x7FFFFFFF).to(tl.int32) ^ NOWHERE
        tl.store(ids_ptr + place, token, mask=lane < K)
        tl.store(logprobs_ptr + place, (value_of(order.to(tl.uint32)) - top) - mass, mask=lane < K)
        tl.store(ranks_ptr + place, 1 + tl.sum(larger.to(tl.int32), axis=1), mask=lane < K)


def _tile(vocab: int) -> int:
    return min(2048, max(16, triton.next_power_of_2(vocab)))


def _parts(rows: int, vocab: int, k: int) -> list[Part]:
    tiles = triton.cdiv(vocab, _tile(vocab))
    return [
        ((rows, tiles), torch.float32),
        ((rows, tiles), torch.int32),
        ((rows, tiles, k), torch.int64),
        ((rows, tiles), torch.float64),
    ]


def workspace_size(rows: int, vocab: int, k: int) -> int:
    """Bytes of workspace."""
    return num_bytes(_parts(rows, vocab, k))


def _merge_sizes(vocab: int, k: int) -> dict[str, int]:
    tiles = triton.cdiv(vocab, _tile(vocab))
    padded = {"KP": max(k, 1), "TP": tiles, "BEST": max(tiles * k, 1)}
    return {"K": k} | {name: triton.next_power_of_2(size) for name, size in padded.items()}


@operator
def logprobs(
    logits: Annotated[Tensor, "float [R, V] rows"],
    token_ids: Annotated[Tensor, "int32 [R]"],
    k: int,
    ids: Annotated[Tensor, "int32 [R, W] out"],
    logprobs: Annotated[Tensor, "fp32 [R, W] out"],
    ranks: Annotated[Tensor, "int32 [R, W] out"],
    workspace: Annotated[Tensor, "out"],
    pdl: bool = False,
) -> None:
    """Of each row's token and its k likeliest; see above. pdl: kernels/base/dependent.py."""
    rows, vocab = logits.shape
    if not 0 <= k <= min(vocab, MAX_K):
        raise ValueError(f"logprobs: k is {k}, expected 0..{min(vocab, MAX_K)}, the vocabulary being {vocab}")
    check("logprobs", "ids", ids, (rows, 1 + k))
    top, above, best, mass = carve("logprobs", workspace, _parts(rows, vocab, k))
    if rows == 0:
        return
    tile, tiles, sizes = _tile(vocab), top.shape[1], _merge_sizes(vocab, k)
    given, options = (logits, logits.stride(0), token_ids, top), {**dependent("logprobs", pdl), **EXACT}
    tile_kernel[(rows, tiles)](*given, above, best, vocab, tiles, k, tile, **options)
    mass_kernel[(rows, tiles)](*given, mass, vocab, tiles, sizes["TP"], tile, **options)
    merge_kernel[(rows,)](*given, above, best, mass, ids, logprobs, ranks, tiles, **sizes, **options)
