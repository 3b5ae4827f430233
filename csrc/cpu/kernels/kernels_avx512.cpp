// Kernels for AVX-512 with bf16 dot products (Cooper Lake, Sapphire Rapids, Zen 4 and later).
#include <immintrin.h>

#include "cpu/kernels/kernels.h"

namespace pearl {
namespace {

constexpr const char* kIsa = "avx512";
constexpr int kMaxRows = 16;  // rows of a register tile
// Column blocks of a register tile: as many sums as 32 registers hold beside the weights.
constexpr int blocks_of(int rows) { return rows <= 6 ? 4 : rows <= 14 ? 2 : 1; }

using Vec = __m512;

inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
#include "cpu/kernels/eight_lanes_body.h"
inline float sum_lanes(Vec a) {
  return sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
inline float max_lanes(Vec a) {
  return max_of_eight(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
inline Vec first_lanes(Vec a, int n, float fill) {
  return _mm512_mask_mov_ps(set1(fill), static_cast<__mmask16>((1u << n) - 1), a);
}
inline Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

inline void store_as(uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a));
}
inline Vec load_as(const uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

inline __m512i load_weights(const uint16_t* p) { return _mm512_loadu_si512(p); }
inline Vec multiply_add(Vec sum, __m512i w, const uint16_t* x) {
  int pair;
  __builtin_memcpy(&pair, x, sizeof pair);
  return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
}
inline Vec load_weights(const float* p) { return load(p); }
inline Vec multiply_add(Vec sum, Vec w, const float* x) { return fma(w, set1(*x), sum); }

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline void prefetch_near(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

// For weights in groups. kGroupedRows integer sums and as many totals fit into 32 registers.
constexpr int kGroupedRows = 8;
using Ints = __m512i;
using Codes = __m512i;
inline Vec fused(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Ints from_offset(int32_t offset) { return _mm512_set1_epi32(offset); }
inline Codes load_codes(const char* p) { return _mm512_loadu_si512(p); }
inline Codes low_halves(Codes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline Codes high_halves(Codes a) { return low_halves(_mm512_srli_epi16(a, 4)); }
inline Ints dot_of_bytes(Ints sum, Codes w, const char* x) {
  int four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
}
using HalfSums = Ints;  // dpbusd adds four products at once
inline HalfSums no_half_sums() { return _mm512_setzero_si512(); }
inline HalfSums with_products(HalfSums sum, Codes w, const char* x) { return dot_of_bytes(sum, w, x); }
inline Ints ints_of(HalfSums a) { return a; }
inline Vec to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Vec load_half(const char* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline bool any_not_finite(Vec a) { return _mm512_fpclass_ps_mask(a, 0x99) != 0; }  // NaN, infinity
inline void store_low_bytes(char* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(a)));
}

#include "cpu/kernels/kernels_body.h"

}  // namespace

const Kernels& avx512_kernels(DType dtype) { return table_of(dtype); }

}  // namespace pearl
