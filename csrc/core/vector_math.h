// exp, log and -log(1 - u) in fp32 adds, multiplies and divisions only, each rounded once: the same bits on
// every instruction set, in numpy (pearl_rt/reference/noise.py) and wherever else IEEE 754 holds.
// Branch-free, so that a plain loop over them becomes vector code. Compile with -ffp-contract=off.
#pragma once

#include <cstdint>
#include <limits>

#include "core/noise.h"

// A loop compiled for several instruction sets, chosen when the library loads; no arithmetic depends on the
// choice. Off where the loader's resolvers cannot run (sanitizers) and off x86.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(PEARL_SANITIZED) && !defined(PEARL_NO_CLONES)
#define PEARL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PEARL_CLONES
#endif

namespace pearl {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

PEARL_INLINE int32_t bits_of(float x) { return __builtin_bit_cast(int32_t, x); }
PEARL_INLINE float float_of(int32_t bits) { return __builtin_bit_cast(float, bits); }

// A choice that stays arithmetic: as a branch it would keep a loop from becoming vector code.
PEARL_INLINE float select(bool condition, float yes, float no) {
  const int32_t mask = -static_cast<int32_t>(condition);
  return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

constexpr float kLn2High = 0x1.62e3p-1f;       // 15 bits: n * kLn2High is exact for |n| < 2^9
constexpr float kLn2Low = 0x1.2fefa2p-17f;     // ln 2 - kLn2High
constexpr int32_t kSqrtHalfBits = 0x3F3504F3;  // sqrt(0.5): mantissas are taken from [sqrt(0.5), sqrt(2))

// log(2^k * (1 + f)) for f in [sqrt(0.5) - 1, sqrt(2) - 1]; the series in s = f / (2 + f) of FreeBSD's
// e_logf.c.
PEARL_INLINE float log_reduced(float k, float f) {
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float series =
      z * (0xaaaaaa.0p-24f + z * (0xccce13.0p-25f + z * (0x91e9ee.0p-25f + z * 0xf89e26.0p-26f)));
  const float half_square = 0.5f * f * f;
  return k * kLn2High - ((half_square - (s * (half_square + series) + k * kLn2Low)) - f);
}

// log(x) for normal x > 0 and +inf.
PEARL_INLINE float log_f32(float x) {
  const int32_t shifted = bits_of(x) - kSqrtHalfBits;
  const int32_t k = shifted >> 23;
  const float mantissa = float_of((shifted & 0x007FFFFF) + kSqrtHalfBits);
  const float result = log_reduced(static_cast<float>(k), mantissa - 1.0f);
  return select(x == kInfinity, kInfinity, result);
}

// An Exp(1) variate from a uniform: -log(1 - u), from 2^-33 at u = 2^-33 to +inf at u = 1. u in (0, 1].
PEARL_INLINE float exponential_of(float u) {
  const float rest = 1.0f - u;
  const float lost = (1.0f - rest) - u;  // what rounding took from rest, exactly
  const int32_t shifted = bits_of(rest) - kSqrtHalfBits;
  const int32_t k = shifted >> 23;
  const float mantissa = float_of((shifted & 0x007FFFFF) + kSqrtHalfBits);
  const float scale = float_of((127 - k) * (1 << 23));  // 2^-k
  const float result = -log_reduced(static_cast<float>(k), (mantissa - 1.0f) + lost * scale);
  return select(u >= 1.0f, kInfinity, result);
}

// A Gumbel variate, -log(-log(1 - u)): largest, and finest, where u is near 0. In [-2.9, 22.9] or -inf (at u
// = 1).
PEARL_INLINE float gumbel_of(float u) {
  const float exponential = exponential_of(u);
  const float result = -log_f32(exponential);
  return select(u >= 1.0f, -kInfinity, result);
}

// Never below gumbel_of(u), for a tenth of the price, and close where u is small: -log(1 - u) >= u, and a
// float's bits read as an integer bound its log2 from below. The margin covers rounding; it was tried on all
// 2^32 words.
PEARL_INLINE float gumbel_bound(float u) {
  return 88.0297f - static_cast<float>(bits_of(u)) * 0x1.62e430p-24f;
}

// exp(x) for x in [-inf, 0]; 0 below -87, so that no result is subnormal.
PEARL_INLINE float exp_f32(float x) {
  const float inside = select(x < -87.0f, -87.0f, x);
  const float shifted = inside * 0x1.715476p+0f + 0x1.8p+23f;  // adding 1.5 * 2^23 rounds to an integer
  const float n = shifted - 0x1.8p+23f;
  const float r = (inside - n * kLn2High) - n * kLn2Low;
  float series = 1.0f / 5040.0f;
  series = series * r + 1.0f / 720.0f;
  series = series * r + 1.0f / 120.0f;
  series = series * r + 1.0f / 24.0f;
  series = series * r + 1.0f / 6.0f;
  series = series * r + 0.5f;
  series = series * (r * r) + r;
  const float result = (series + 1.0f) * float_of((static_cast<int32_t>(n) + 127) * (1 << 23));
  return select(x < -87.0f, 0.0f, result);
}

}  // namespace pearl
