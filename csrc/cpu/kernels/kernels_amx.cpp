// Kernels for AMX with bf16 tiles (Sapphire Rapids and later); all but the matmul are AVX-512's.
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

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// All eight tiles are 16 x 64 bytes. The permission is the process's (isa.cpp asks for it), the setting a
// thread's.
void configure_tiles() {
  alignas(64) const TileConfig config;
  __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

const Kernels& base() { return avx512_kernels(DType::kBfloat16); }

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

#include "cpu/kernels/tile_matmul_body.h"

}  // namespace

const Kernels& amx_kernels(DType dtype) {
  static const Kernels bfloat16 = with_tiles(configure_tiles);
  return dtype == DType::kBfloat16 ? bfloat16 : avx512_kernels(dtype);
}

}  // namespace pearl
