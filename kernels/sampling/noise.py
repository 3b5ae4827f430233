"""Randomness as a pure function, inside kernels: (seed, position, purpose, index) -> 32 bits, and variates.

The same bits as pearl_rt/reference/noise.py and csrc/core/noise.h: fp32 operations in the same order, each
rounded
once. A kernel that uses this file is therefore launched and compiled with EXACT (no fused multiply-add;
ptxas gets --fmad=false), and divides by `tl.div_rn`, which is IEEE division where `/` is not.

Philox4x32-10, key = (seed low, seed high), counter = (index >> 2, position low, position high, purpose);
the word of an index is output word index & 3."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..base import interpreter  # noqa: F401

EXACT = {"enable_fp_fusion": False}  # options of every launch, and of every CompileCase

# What a random number decides: pearl_rt.reference.noise.Purpose.
DRAFT = tl.constexpr(0)
ACCEPT = tl.constexpr(1)
RESIDUAL = tl.constexpr(2)
BONUS = tl.constexpr(3)
TARGET = tl.constexpr(4)

INFINITY = tl.constexpr(float("inf"))
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)  # sqrt(0.5): mantissas are taken from [sqrt(0.5), sqrt(2))
LN2_HIGH = tl.constexpr(float.fromhex("0x1.62e3p-1"))
LN2_LOW = tl.constexpr(float.fromhex("0x1.2fefa2p-17"))
LOG2_E = tl.constexpr(float.fromhex("0x1.715476p+0"))
ROUNDER = tl.constexpr(1.5 * 2**23)  # adding it rounds to an integer
LOG_3 = tl.constexpr(float.fromhex("0xf89e26p-26"))
LOG_2 = tl.constexpr(float.fromhex("0x91e9eep-25"))
LOG_1 = tl.constexpr(float.fromhex("0xccce13p-25"))
LOG_0 = tl.constexpr(float.fromhex("0xaaaaaap-24"))
EXP_7 = tl.constexpr(float.fromhex("0x1.a01a02p-13"))  # 1 / 7!, rounded to fp32, and so on
EXP_6 = tl.constexpr(float.fromhex("0x1.6c16c2p-10"))
EXP_5 = tl.constexpr(float.fromhex("0x1.111112p-7"))
EXP_4 = tl.constexpr(float.fromhex("0x1.555556p-5"))
EXP_3 = tl.constexpr(float.fromhex("0x1.555556p-3"))
EXP_2 = tl.constexpr(0.5)
TWO_TO_MINUS_32 = tl.constexpr(2.0**-32)


@triton.jit
def philox4x32_10(c0, c1, c2, c3, k0, k1):  # uint32, of shapes that broadcast -> four uint32
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low1 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def noise_words(seed, position, purpose, group):
    """The words of indices 4 * group .. 4 * group + 3. seed, position: int64; purpose, group: int32."""
    return philox4x32_10(
        group.to(tl.uint32),
        position.to(tl.uint32),
        (position >> 32).to(tl.uint32),
        purpose.to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def noise_tile(seed, position, purpose, first, TILE: tl.constexpr):
    """The words of indices first .. first + TILE - 1, both multiples of 4: [ROWS, TILE] uint32, or [TILE].

    seed, position: [ROWS] int64, or scalars; purpose: int32 likewise. One Philox block gives four neighbours.
    """
    group = first // 4 + tl.arange(0, TILE // 4)
    if len(seed.shape) == 0:
        w0, w1, w2, w3 = noise_words(seed, position, purpose, group)
    else:
        w0, w1, w2, w3 = noise_words(seed[:, None], position[:, None], purpose[:, None], group[None, :])
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def uniform(word):
    """(word + 0.5) * 2^-32 rounded once to fp32: from 2^-33 to 1. word: uint32."""
    high = (word >> 16).to(tl.int32).to(tl.float32) * 65536.0
    low = (word & 0xFFFF).to(tl.int32).to(tl.float32) + 0.5
    return (high + low) * TWO_TO_MINUS_32


@triton.jit
def _log_reduced(k, f):
    """log(2^k * (1 + f)) for f in [sqrt(0.5) - 1, sqrt(2) - 1]."""
    s = tl.div_rn(f, f + 2.0)
    z = s * s
    series = z * LOG_3 + LOG_2
    series = z * series + LOG_1
    series = z * series + LOG_0
    series = z * series
    half_square = f * 0.5 * f
    return k * LN2_HIGH - ((half_square - (s * (half_square + series) + k * LN2_LOW)) - f)


@triton.jit
def log(x):
    """log of normal x > 0 and +inf."""
    shifted = x.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    k = (shifted >> 23).to(tl.float32)
    mantissa = ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    return tl.where(x == INFINITY, INFINITY, _log_reduced(k, mantissa - 1.0))


@triton.jit
def exponential(u):
    """-log(1 - u), an Exp(1) variate: from 2^-33 at u = 2^-33 to +inf at u = 1. u in (0, 1]."""
    rest = 1.0 - u
    lost = (1.0 - rest) - u  # what rounding took from rest, exactly
    shifted = rest.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    k = shifted >> 23
    mantissa = ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    scale = ((127 - k) * 8388608).to(tl.float32, bitcast=True)  # 2^-k
    result = -_log_reduced(k.to(tl.float32), (mantissa - 1.0) + lost * scale)
    return tl.where(u >= 1.0, INFINITY, result)


@triton.jit
def gumbel(u):
    """-log(-log(1 - u)): in [-2.9, 22.9], or -inf at u = 1."""
    return -log(exponential(u))


@triton.jit
def exp(x):
    """exp of x in [-inf, 0]; 0 below -87."""
    inside = tl.where(x < -87.0, -87.0, x)
    n = (inside * LOG2_E + ROUNDER) - ROUNDER
    r = (inside - n * LN2_HIGH) - n * LN2_LOW
    series = r * EXP_7 + EXP_6
    series = series * r + EXP_5
    series = series * r + EXP_4
    series = series * r + EXP_3
    series = series * r + EXP_2
    series = series * (r * r) + r
    scale = ((n.to(tl.int32) + 127) * 8388608).to(tl.float32, bitcast=True)
    return tl.where(x < -87.0, 0.0, (series + 1.0) * scale)


@triton.jit
def inverse_temperature(temperature):
    """1 / temperature, kept finite and normal; 1 where it is not > 0 (greedy rows scale nothing)."""
    positive = tl.where(temperature > 0.0, temperature, 1.0)
    inverse = tl.div_rn(tl.full(positive.shape, 1.0, tl.float32), positive)
    return tl.minimum(tl.maximum(inverse, 1.1754943508222875e-38), 3.4028234663852886e38)
