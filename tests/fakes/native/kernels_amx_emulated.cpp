// The tile kernel of kernels_amx.cpp over tiles in plain memory, so that its indexing is tested on every
// machine.
#include "native/kernels_amx_emulated.h"

#include <atomic>

namespace pearl {
namespace {

constexpr const char* kIsa = "amx_emulated";

// A tile register: 16 rows of 64 bytes.
struct Tile {
  alignas(64) char bytes[16][64];
};

inline float widen(uint16_t x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }

template <int INDEX>
Tile& tile() {
  thread_local Tile register_file;
  return register_file;
}
template <int INDEX>
void tile_zero() {
  __builtin_memset(&tile<INDEX>(), 0, sizeof(Tile));
}
template <int INDEX>
void tile_load(const void* p, int64_t stride_bytes) {
  for (int r = 0; r < 16; ++r) {
    __builtin_memcpy(tile<INDEX>().bytes[r], static_cast<const char*>(p) + r * stride_bytes, 64);
  }
}
template <int INDEX>
void tile_store(void* p, int64_t stride_bytes) {
  for (int r = 0; r < 16; ++r) {
    __builtin_memcpy(static_cast<char*>(p) + r * stride_bytes, tile<INDEX>().bytes[r], 64);
  }
}
// sums[m][n] += sum over 16 pairs of x[m][2 p + i] * w[p][2 n + i]
template <int SUMS, int X, int W>
void tile_dot() {
  float sums[16][16];
  uint16_t x[16][32], w[16][32];
  __builtin_memcpy(sums, &tile<SUMS>(), sizeof sums);
  __builtin_memcpy(x, &tile<X>(), sizeof x);
  __builtin_memcpy(w, &tile<W>(), sizeof w);
  for (int m = 0; m < 16; ++m) {
    for (int pair = 0; pair < 16; ++pair) {
      for (int n = 0; n < 16; ++n) {
        sums[m][n] += widen(x[m][2 * pair]) * widen(w[pair][2 * n]);
        sums[m][n] += widen(x[m][2 * pair + 1]) * widen(w[pair][2 * n + 1]);
      }
    }
  }
  __builtin_memcpy(&tile<SUMS>(), sums, sizeof sums);
}

const Kernels& base() { return portable_kernels(DType::kBfloat16); }

inline void prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }

#include "cpu/kernels/tile_matmul_body.h"

std::atomic<int> left_until_flaw;

void flawed_matmul(const MatmulArgs& args) {
  tile_matmul(args);
  if (--left_until_flaw != 0) return;
  static_cast<float*>(args.out)[(args.rows - 1) * args.out_stride + args.num_cols - 1] += 1.0f;
}

}  // namespace

const Kernels& amx_emulated_kernels_with_a_flaw(int nth) {
  static const Kernels table = [] {
    Kernels flawed = with_tiles(nullptr);
    flawed.matmul = flawed_matmul;
    return flawed;
  }();
  left_until_flaw = nth;
  return table;
}

const Kernels& amx_emulated_kernels(DType dtype) {
  static const Kernels bfloat16 = with_tiles(nullptr);
  return dtype == DType::kBfloat16 ? bfloat16 : portable_kernels(dtype);
}

}  // namespace pearl
