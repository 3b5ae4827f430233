// Kernels for AMX with tiles of bf16 and of 8-bit codes (Sapphire Rapids and later); all but the matmuls are
// AVX-512's.
#include <immintrin.h>

#include "cpu/kernels/kernels.h"

namespace pearl {
namespace {

constexpr const char* kIsa = "amx";

// Own assembly, since the compiler's intrinsics do not say that they read and write memory.
template <int INDEX>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(INDEX));
}
template <int INDEX>
inline void tile_load(const void* p, int64_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride_bytes), "i"(INDEX) : "memory");
}
template <int INDEX>
inline void tile_store(void* p, int64_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride_bytes), "i"(INDEX) : "memory");
}
template <int SUMS, int X, int W>
inline void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(X), "i"(W));
}

template <int SUMS, int X, int W>
inline void tile_dot_codes() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(X), "i"(W));
}

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// The permission is the process's (isa.cpp asks for it), the setting a thread's.
inline void set_tiles(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }

// All eight tiles are 16 x 64 bytes.
void configure_tiles() {
  alignas(64) static constexpr TileConfig config{.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                                 .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
  set_tiles(config);
}

void set_code_tiles() {
  alignas(64) static constexpr TileConfig config{.row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
                                                 .rows = {16, 16, 16, 16, 16, 16, 8, 8}};
  set_tiles(config);
}

inline void separate_halves(const char* halves, char* codes) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int line = 0; line < 4; ++line) {
    const __m512i both = _mm512_loadu_si512(halves + 64 * line);
    _mm512_store_si512(codes + 64 * line, _mm512_and_si512(both, low));
    _mm512_store_si512(codes + 64 * (4 + line), _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
  }
}

inline __m512 load_half(const char* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

struct Totals {
  __m512 rows[kTileRows];

  void zero() {
#pragma GCC unroll 16
    for (__m512& row : rows) row = _mm512_setzero_ps();
  }
  template <bool OFFSETS, bool MINIMUMS, class Factors>
  void add_group(const int32_t* dots, const char* scales, const char* minimums, const Factors& factors) {
    const __m512 scale = load_half(scales), minimum = MINIMUMS ? load_half(minimums) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) {
      const int64_t at = m * factors.apart;
      __m512i sum = _mm512_load_si512(dots + m * kLanes);
      if (OFFSETS) sum = _mm512_add_epi32(sum, _mm512_set1_epi32(factors.offsets[at]));
      const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(factors.scales[at]));
      rows[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, rows[m]);
      if (MINIMUMS) rows[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(factors.sums[at]), rows[m]);
    }
  }
  void store(float* sums) const {
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) _mm512_storeu_ps(sums + m * kPanel * kLanes, rows[m]);
  }
};

const Kernels& base() { return avx512_kernels(DType::kBfloat16); }

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

#include "cpu/kernels/tile_matmul_body.h"

}  // namespace

const Kernels& amx_kernels(DType dtype) {
  static const Kernels bfloat16 = with_tiles();
  return dtype == DType::kBfloat16 ? bfloat16 : avx512_kernels(dtype);
}

}  // namespace pearl
