// Kernels in plain loops, for every machine; the definition that the other instruction sets are tested
// against.
#include "cpu/kernels/kernels.h"

namespace pearl {
namespace {

constexpr const char* kIsa = "portable";
constexpr int kMaxRows = 4;                                      // rows of a register tile
constexpr int blocks_of(int rows) { return rows == 1 ? 2 : 1; }  // column blocks of a register tile

struct Vec {  // 16 fp32 lanes
  float lane[kLanes];
};

#define PEARL_EACH for (int i = 0; i < kLanes; ++i)

inline Vec set1(float x) {
  Vec r;
  PEARL_EACH r.lane[i] = x;
  return r;
}
inline Vec load(const float* p) {
  Vec r;
  PEARL_EACH r.lane[i] = p[i];
  return r;
}
inline void store(float* p, const Vec& a) { PEARL_EACH p[i] = a.lane[i]; }
inline Vec add(const Vec& a, const Vec& b) {
  Vec r;
  PEARL_EACH r.lane[i] = a.lane[i] + b.lane[i];
  return r;
}
inline Vec sub(const Vec& a, const Vec& b) {
  Vec r;
  PEARL_EACH r.lane[i] = a.lane[i] - b.lane[i];
  return r;
}
inline Vec mul(const Vec& a, const Vec& b) {
  Vec r;
  PEARL_EACH r.lane[i] = a.lane[i] * b.lane[i];
  return r;
}
inline Vec div(const Vec& a, const Vec& b) {
  Vec r;
  PEARL_EACH r.lane[i] = a.lane[i] / b.lane[i];
  return r;
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) { return add(mul(a, b), c); }
// The larger one; b where either is NaN.
inline Vec max(const Vec& a, const Vec& b) {
  Vec r;
  PEARL_EACH r.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return r;
}
inline float sum_lanes(Vec a) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.lane[i] += a.lane[i + width];
  }
  return a.lane[0];
}
inline float max_lanes(const Vec& a) {
  float best = a.lane[0];
  for (int i = 1; i < kLanes; ++i) best = a.lane[i] > best ? a.lane[i] : best;
  return best;
}
inline Vec min(const Vec& a, const Vec& b) {
  Vec r;
  PEARL_EACH r.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return r;
}
// a in the first n lanes, `fill` in the others.
inline Vec first_lanes(const Vec& a, int n, float fill) {
  Vec r;
  PEARL_EACH r.lane[i] = i < n ? a.lane[i] : fill;
  return r;
}
// x * 2^round(n), |n| < 126; n is integral.
inline Vec scale_by_power(const Vec& x, const Vec& n) {
  Vec r;
  PEARL_EACH {
    const int32_t exponent = n.lane[i] == n.lane[i] ? static_cast<int32_t>(n.lane[i]) : 0;
    r.lane[i] = x.lane[i] * __builtin_bit_cast(float, (exponent + 127) * (1 << 23));
  }
  return r;
}

inline uint16_t to_bf16(float x) {  // round to nearest even; NaN stays NaN
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }

inline void store_as(uint16_t* p, const Vec& a) { PEARL_EACH p[i] = to_bf16(a.lane[i]); }
inline Vec load_as(const uint16_t* p) {
  Vec r;
  PEARL_EACH r.lane[i] = from_bf16(p[i]);
  return r;
}

struct Weights {  // 16 columns of one step over K: a bf16 pair each
  Vec even, odd;
};
inline Weights load_weights(const uint16_t* p) {
  Weights w;
  PEARL_EACH {
    w.even.lane[i] = from_bf16(p[2 * i]);
    w.odd.lane[i] = from_bf16(p[2 * i + 1]);
  }
  return w;
}
inline Vec multiply_add(const Vec& sum, const Weights& w, const uint16_t* x) {
  const float x0 = from_bf16(x[0]), x1 = from_bf16(x[1]);
  Vec r;
  PEARL_EACH r.lane[i] = (sum.lane[i] + w.even.lane[i] * x0) + w.odd.lane[i] * x1;
  return r;
}
inline Vec load_weights(const float* p) { return load(p); }
inline Vec multiply_add(const Vec& sum, const Vec& w, const float* x) {
  Vec r;
  PEARL_EACH r.lane[i] = sum.lane[i] + w.lane[i] * x[0];
  return r;
}

// For weights in groups.
constexpr int kGroupedRows = 2;
struct Ints {  // 16 int32 lanes
  int32_t lane[kLanes];
};
struct Codes {  // 4 inputs of 16 columns
  uint8_t byte[4 * kLanes];
};
// Rounded once, as the other instruction sets do it.
inline Vec fused(const Vec& a, const Vec& b, const Vec& c) {
  Vec r;
  PEARL_EACH r.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
  return r;
}
inline Ints from_offset(int32_t offset) {
  Ints r;
  PEARL_EACH r.lane[i] = offset;
  return r;
}
inline Codes load_codes(const char* p) {
  Codes r;
  __builtin_memcpy(r.byte, p, sizeof r.byte);
  return r;
}
inline Codes low_halves(Codes a) {
  for (uint8_t& byte : a.byte) byte &= 15;
  return a;
}
inline Codes high_halves(Codes a) {
  for (uint8_t& byte : a.byte) byte >>= 4;
  return a;
}
// One copy for all forms and numbers of rows, which would else be most of the library.
[[gnu::noinline]] Ints dot_of_bytes(Ints sum, const Codes& w, const char* x) {
  const auto* four = reinterpret_cast<const int8_t*>(x);
  PEARL_EACH {
    for (int j = 0; j < 4; ++j) sum.lane[i] += w.byte[4 * i + j] * four[j];
  }
  return sum;
}
using HalfSums = Ints;
inline HalfSums no_half_sums() { return {}; }
inline HalfSums with_products(const HalfSums& sum, const Codes& w, const char* x) {
  return dot_of_bytes(sum, w, x);
}
inline Ints ints_of(const HalfSums& a) { return a; }
inline Vec to_floats(const Ints& a) {
  Vec r;
  PEARL_EACH r.lane[i] = static_cast<float>(a.lane[i]);
  return r;
}
inline Vec load_half(const char* p) {
  Vec r;
  PEARL_EACH {
    uint16_t half;
    __builtin_memcpy(&half, p + 2 * i, sizeof half);
    r.lane[i] = float_of_half(half);
  }
  return r;
}
inline bool any_not_finite(const Vec& a) {
  bool found = false;
  PEARL_EACH found |= a.lane[i] - a.lane[i] != 0.0f;
  return found;
}
inline void store_low_bytes(char* p, const Vec& a) {
  PEARL_EACH p[i] = static_cast<char>(__builtin_bit_cast(uint32_t, a.lane[i]) & 0xFF);
}

#undef PEARL_EACH

inline void prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }
inline void prefetch_near(const char* p) { __builtin_prefetch(p); }

#include "cpu/kernels/kernels_body.h"

}  // namespace

const Kernels& portable_kernels(DType dtype) { return table_of(dtype); }

}  // namespace pearl
