"""Randomness as a pure function: (seed, position, purpose, vocabulary index) -> 32 bits, and variates.

The numpy twin of csrc/core/noise.h and csrc/core/vector_math.h, bit for bit: fp32 adds, multiplies and
divisions in the same order, each rounded once. It knows nothing of logits, rounds or judges.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with
key = (seed low, seed high) and counter = (index >> 2, position low, position high, purpose); the word of an
index is output word index & 3.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

INFINITY = np.float32(np.inf)
SQRT_HALF_BITS = np.int32(0x3F3504F3)  # sqrt(0.5): mantissas are taken from [sqrt(0.5), sqrt(2))
LN2_HIGH = np.float32(float.fromhex("0x1.62e3p-1"))
LN2_LOW = np.float32(float.fromhex("0x1.2fefa2p-17"))
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
ROUNDER = np.float32(1.5 * 2**23)  # adding it rounds to an integer
LOG_SERIES = tuple(  # FreeBSD's e_logf.c, highest power first
    np.float32(float.fromhex(c)) for c in ("0xf89e26p-26", "0x91e9eep-25", "0xccce13p-25", "0xaaaaaap-24")
)
EXP_SERIES = tuple(np.float32(1.0) / np.float32(f) for f in (5040, 720, 120, 24, 6, 2))


class Purpose(IntEnum):
    """What a random number decides. Two decisions never share a counter."""

    DRAFT = 0  # rejection: the draft samples its own tokens
    ACCEPT = 1  # rejection: the uniform of the accept test (index 0)
    RESIDUAL = 2  # rejection: the token that replaces a rejected one
    BONUS = 3  # rejection: the target alone: ar, first token, bonus token
    TARGET = 4  # coupled: shared by draft and target on purpose
    SAMPLE = 5  # the seed of one of n answers
    STOP = 6  # whether a window goes on, by chance: of the draft that would be next


def philox4x32_10(counter: npt.ArrayLike, key: tuple[int, int]) -> Words:
    """counter: [N, 4] words; key: 2 words -> [N, 4] uint32, one block each."""
    c0, c1, c2, c3 = np.asarray(counter, dtype=np.uint64).reshape(-1, 4).T
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = c0 * np.uint64(MULTIPLIERS[0])
        product1 = c2 * np.uint64(MULTIPLIERS[1])
        c0 = (product1 >> HALF) ^ c1 ^ np.uint64(k0)
        c1 = product1 & LOW
        c2 = (product0 >> HALF) ^ c3 ^ np.uint64(k1)
        c3 = product0 & LOW
        k0 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF
        k1 = (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, position: int, purpose: int, count: int) -> Words:
    """The noise words of indices 0 .. count - 1: [count] uint32. seed: 64 bits, position: 64 bits, signed."""
    place = position & 0xFFFFFFFFFFFFFFFF
    groups = -(-count // 4)
    counter = np.empty((groups, 4), dtype=np.uint64)
    counter[:, 0] = np.arange(groups)
    counter[:, 1:] = (place & 0xFFFFFFFF, place >> 32, purpose)
    return philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).reshape(-1)[:count]


def sample_seed(seed: int, index: int) -> int:
    """The seed of answer `index` of n: seed itself for the first, else 64 bits of (seed, index)."""
    if index == 0:
        return seed
    low, high = words(seed, index, Purpose.SAMPLE, 2)
    return int(low) | int(high) << 32


def uniform(noise: Words) -> Floats:
    """(word + 0.5) * 2^-32 rounded once to fp32, to nearest even: from 2^-33 to 1, both included."""
    return ((noise.astype(np.float64) + 0.5) * 2.0**-32).astype(np.float32)


def _log_reduced(k: Floats, f: Floats) -> Floats:
    """log(2^k * (1 + f)) for f in [sqrt(0.5) - 1, sqrt(2) - 1]."""
    s = f / (np.float32(2.0) + f)
    z = s * s
    series = np.full_like(z, LOG_SERIES[0])
    for coefficient in LOG_SERIES[1:]:
        series = coefficient + z * series
    series = z * series
    half_square = np.float32(0.5) * f * f
    result: Floats = k * LN2_HIGH - ((half_square - (s * (half_square + series) + k * LN2_LOW)) - f)
    return result


def _split(x: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """x = 2^k * mantissa -> (k, mantissa in [sqrt(0.5), sqrt(2)))."""
    shifted = x.view(np.int32) - SQRT_HALF_BITS
    return shifted >> 23, ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).view(np.float32)


def log(x: Floats) -> Floats:
    """log of normal x > 0 and +inf."""
    k, mantissa = _split(x)
    return np.where(x == INFINITY, INFINITY, _log_reduced(k.astype(np.float32), mantissa - np.float32(1.0)))


def exponential(u: Floats) -> Floats:
    """-log(1 - u), an Exp(1) variate: from 2^-33 at u = 2^-33 to +inf at u = 1. u in (0, 1]."""
    rest = np.float32(1.0) - u
    lost = (np.float32(1.0) - rest) - u  # what rounding took from rest, exactly
    k, mantissa = _split(rest)
    scale = ((127 - k) * np.int32(1 << 23)).view(np.float32)  # 2^-k
    result = -_log_reduced(k.astype(np.float32), (mantissa - np.float32(1.0)) + lost * scale)
    return np.where(u >= 1.0, INFINITY, result)


def gumbel(u: Floats) -> Floats:
    """-log(-log(1 - u)): largest, and finest, where u is near 0. In [-2.9, 22.9], or -inf at u = 1."""
    return np.where(u >= 1.0, -INFINITY, -log(exponential(u)))


def exp(x: Floats) -> Floats:
    """exp of x in [-inf, 0]; 0 below -87."""
    inside = np.where(x < -87.0, np.float32(-87.0), x)
    n = (inside * LOG2_E + ROUNDER) - ROUNDER
    r = (inside - n * LN2_HIGH) - n * LN2_LOW
    series = np.full_like(r, EXP_SERIES[0])
    for coefficient in EXP_SERIES[1:]:
        series = series * r + coefficient
    series = series * (r * r) + r
    scale = ((n.astype(np.int32) + 127) * np.int32(1 << 23)).view(np.float32)
    return np.where(x < -87.0, np.float32(0.0), (series + np.float32(1.0)) * scale)
