// Kernels for AVX2 with FMA: bf16 is widened by a shift.
#include <immintrin.h>

#include "cpu/kernels/kernels.h"

namespace pearl {
namespace {

constexpr const char* kIsa = "avx2";
constexpr int kMaxRows = 4;  // rows of a register tile
// Column blocks of a register tile: 16 registers hold 8 of sums, 4 of weights and 2 of a row's pair.
constexpr int blocks_of(int rows) { return rows == 1 ? 2 : 1; }

struct Vec {  // 16 fp32 lanes
  __m256 low, high;
};

inline Vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// b where either is NaN
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
#include "cpu/kernels/eight_lanes_body.h"
inline float sum_lanes(Vec a) { return sum_of_eight(_mm256_add_ps(a.low, a.high)); }
inline float max_lanes(Vec a) { return max_of_eight(_mm256_max_ps(a.low, a.high)); }
inline Vec first_lanes(Vec a, int n, float fill) {
  const __m256i count = _mm256_set1_epi32(n);
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
  const __m256 other = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(other, a.low, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low))),
          _mm256_blendv_ps(other, a.high, _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, high)))};
}
inline __m256 power_of_two(__m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Vec scale_by_power(Vec x, Vec n) {
  return {_mm256_mul_ps(x.low, power_of_two(n.low)), _mm256_mul_ps(x.high, power_of_two(n.high))};
}

// The bf16 of each lane in its low half: round to nearest even; NaN stays NaN.
inline __m256i rounded(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), is_nan);
  return _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
}
inline void store_as(uint16_t* p, Vec a) {
  const __m256i mixed = _mm256_packus_epi32(rounded(a.low), rounded(a.high));  // quarters 0, 2, 1, 3
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xD8));
}
// a, a result of exp_vecs, rounded to bf16 and kept as fp32 of that value; returns it. Without rounded's care
// for NaN: one that comes from bf16 ends with zeros, so that rounding leaves it NaN.
inline __m256 rounded_exp(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}
inline Vec keep_exp(float* p, Vec a, uint16_t) {
  const Vec kept = {rounded_exp(a.low), rounded_exp(a.high)};
  store(p, kept);
  return kept;
}
inline __m256 widened(const uint16_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline Vec load_as(const uint16_t* p) { return {widened(p), widened(p + 8)}; }

struct Weights {  // 16 columns of one step over K: a bf16 pair each
  Vec even, odd;
};
inline __m256 even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd_of(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}
inline Weights load_weights(const uint16_t* p) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1);
  return {{even_of(low), even_of(high)}, {odd_of(low), odd_of(high)}};
}
inline Vec multiply_add(Vec sum, const Weights& w, const uint16_t* x) {
  int pair;
  __builtin_memcpy(&pair, x, sizeof pair);
  const __m256i both = _mm256_set1_epi32(pair);
  const __m256 x0 = even_of(both), x1 = odd_of(both);
  sum = fma(w.even, {x0, x0}, sum);
  return fma(w.odd, {x1, x1}, sum);
}
inline Vec multiply_add(Vec sum, const Weights& w, const float* x) {
  return fma(w.odd, set1(x[1]), fma(w.even, set1(x[0]), sum));
}
inline Vec load_weights(const float* p) { return load(p); }
inline Vec multiply_add(Vec sum, Vec w, const float* x) { return fma(w, set1(*x), sum); }

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
inline void prefetch_near(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

// For weights in groups.
constexpr int kGroupedRows = 4;
struct Ints {  // 16 int32 lanes
  __m256i low, high;
};
using Codes = Ints;
inline Vec fused(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Ints from_offset(int32_t) {  // dot_of_bytes takes signed codes
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline Codes load_codes(const char* p) {
  const __m256i* at = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline __m256i low_half(__m256i a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline Codes low_halves(const Codes& a) { return {low_half(a.low), low_half(a.high)}; }
inline Codes high_halves(const Codes& a) {
  return {low_half(_mm256_srli_epi16(a.low, 4)), low_half(_mm256_srli_epi16(a.high, 4))};
}
inline __m256i four_of(const char* x) {
  int four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}
// The sum is added to here and now. Left free, gcc joins the sums of all steps into trees, and 16 registers
// then hold neither their parts nor the sums.
inline __m256i in_order(__m256i sum) {
#if defined(__GNUC__)
  __asm__ volatile("" : "+x"(sum));
#endif
  return sum;
}
inline __m256i pairs_to_ints(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
// Magnitudes of w times x with w's sign: no sum of two passes 2 * 128 * 127, which int16 holds.
inline __m256i signed_sums(__m256i sum, __m256i stored, __m256i x) {
  const __m256i w = _mm256_xor_si256(stored, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return in_order(_mm256_add_epi32(sum, pairs_to_ints(pairs)));
}
inline Ints dot_of_bytes(const Ints& sum, const Codes& w, const char* x) {
  const __m256i four = four_of(x);
  const __m256i low = signed_sums(sum.low, w.low, four);
  return {low, signed_sums(sum.high, w.high, four)};
}
struct HalfSums {  // 32 int16 lanes
  __m256i low, high;
};
inline HalfSums no_half_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline HalfSums with_products(const HalfSums& sum, const Codes& w, const char* x) {
  const __m256i four = four_of(x);
  const __m256i low = in_order(_mm256_add_epi16(sum.low, _mm256_maddubs_epi16(w.low, four)));
  return {low, in_order(_mm256_add_epi16(sum.high, _mm256_maddubs_epi16(w.high, four)))};
}
inline Ints ints_of(const HalfSums& a) { return {pairs_to_ints(a.low), pairs_to_ints(a.high)}; }
inline Vec to_floats(const Ints& a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline Vec load_half(const char* p) {
  const __m128i* at = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}
inline bool any_not_finite(Vec a) {  // a - a is NaN there
  const Vec zero = sub(a, a);
  const __m256 low = _mm256_cmp_ps(zero.low, zero.low, _CMP_UNORD_Q);
  return _mm256_movemask_ps(_mm256_or_ps(low, _mm256_cmp_ps(zero.high, zero.high, _CMP_UNORD_Q))) != 0;
}
inline void store_low_bytes(char* p, Vec a) {
  const __m256i bytes = _mm256_set1_epi32(0xFF);
  const __m256i low = _mm256_and_si256(_mm256_castps_si256(a.low), bytes);
  const __m256i high = _mm256_and_si256(_mm256_castps_si256(a.high), bytes);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

#include "cpu/kernels/kernels_body.h"
#include "cpu/kernels/wide_matmul_body.h"

}  // namespace

const Kernels& avx2_kernels(DType dtype) {
  return dtype == DType::kBfloat16 ? kWideBfloat16Table : kWideFloat32Table;
}

}  // namespace pearl
