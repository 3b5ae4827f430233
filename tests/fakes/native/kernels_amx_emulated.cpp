// The tile kernel of kernels_amx.cpp over tiles in plain memory, so that its indexing is tested on every
// machine.
#include "native/kernels_amx_emulated.h"

#include <atomic>

namespace pearl {
namespace {

constexpr const char* kIsa = "amx_emulated";

// A tile register: up to 16 rows of 64 bytes.
struct Tile {
  alignas(64) char bytes[16][64];
};

// Rows and bytes of a row of each tile, as ldtilecfg sets them.
struct Shape {
  int rows, row_bytes;
};
thread_local Shape shapes[8];

void configure_tiles() {
  for (Shape& shape : shapes) shape = {16, 64};
}
void set_code_tiles() {
  for (const int x : {4, 5}) shapes[x] = {16, 32};
  for (const int w : {6, 7}) shapes[w] = {8, 64};
}

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
  const auto [rows, row_bytes] = shapes[INDEX];
  for (int r = 0; r < rows; ++r) {
    __builtin_memcpy(tile<INDEX>().bytes[r], static_cast<const char*>(p) + r * stride_bytes, row_bytes);
  }
}
template <int INDEX>
void tile_store(void* p, int64_t stride_bytes) {
  const auto [rows, row_bytes] = shapes[INDEX];
  for (int r = 0; r < rows; ++r) {
    __builtin_memcpy(static_cast<char*>(p) + r * stride_bytes, tile<INDEX>().bytes[r], row_bytes);
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

// sums[m][n] += sum over the steps of w and 4 inputs of x[m][4 s + i] * w[s][4 n + i]
template <int SUMS, int X, int W>
void tile_dot_codes() {
  int32_t sums[16][16];
  __builtin_memcpy(sums, &tile<SUMS>(), sizeof sums);
  for (int m = 0; m < shapes[X].rows; ++m) {
    for (int step = 0; step < shapes[W].rows; ++step) {
      for (int n = 0; n < 16; ++n) {
        for (int i = 0; i < 4; ++i) {
          const auto w = static_cast<uint8_t>(tile<W>().bytes[step][4 * n + i]);
          sums[m][n] += static_cast<int8_t>(tile<X>().bytes[m][4 * step + i]) * w;
        }
      }
    }
  }
  __builtin_memcpy(&tile<SUMS>(), sums, sizeof sums);
}

void separate_halves(const char* halves, char* codes) {
  for (int i = 0; i < 256; ++i) {
    const auto both = static_cast<uint8_t>(halves[i]);
    codes[i] = static_cast<char>(both & 15);
    codes[256 + i] = static_cast<char>(both >> 4);
  }
}

float half_at(const char* p, int n) {
  uint16_t half;
  __builtin_memcpy(&half, p + 2 * n, sizeof half);
  return float_of_half(half);
}

struct Totals {
  float rows[kTileRows][kLanes];

  void zero() { __builtin_memset(rows, 0, sizeof rows); }
  template <bool OFFSETS, bool MINIMUMS, class Factors>
  void add_group(const int32_t* dots, const char* scales, const char* minimums, const Factors& factors) {
    for (int m = 0; m < kTileRows; ++m) {
      const int64_t at = m * factors.apart;
      for (int n = 0; n < kLanes; ++n) {
        const int32_t dot = dots[m * kLanes + n] + (OFFSETS ? factors.offsets[at] : 0);
        const float factor = half_at(scales, n) * factors.scales[at];
        rows[m][n] = __builtin_fmaf(static_cast<float>(dot), factor, rows[m][n]);
        if (MINIMUMS) rows[m][n] = __builtin_fmaf(half_at(minimums, n), factors.sums[at], rows[m][n]);
      }
    }
  }
  void store(float* sums) const {
    for (int m = 0; m < kTileRows; ++m) {
      __builtin_memcpy(sums + m * kPanel * kLanes, rows[m], sizeof rows[m]);
    }
  }
};

const Kernels& base() { return portable_kernels(DType::kBfloat16); }

inline void prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }

#include "cpu/kernels/tile_matmul_body.h"

std::atomic<int> left_until_flaw;

void perhaps_spoil(const MatmulArgs& args) {
  if (--left_until_flaw != 0) return;
  static_cast<float*>(args.out)[(args.rows - 1) * args.out_stride + args.num_cols - 1] += 1.0f;
}
void flawed_matmul(const MatmulArgs& args) {
  tile_matmul(args);
  perhaps_spoil(args);
}
void flawed_grouped_matmul(const GroupedMatmulArgs& args) {
  tile_grouped_matmul(args);
  perhaps_spoil(args.out);
}

}  // namespace

const Kernels& amx_emulated_kernels_with_a_flaw(int nth) {
  static const Kernels table = [] {
    Kernels flawed = with_tiles();
    flawed.matmul = flawed_matmul;
    flawed.grouped_matmul = flawed_grouped_matmul;
    return flawed;
  }();
  left_until_flaw = nth;
  return table;
}

const Kernels& amx_emulated_kernels(DType dtype) {
  static const Kernels bfloat16 = with_tiles();
  return dtype == DType::kBfloat16 ? bfloat16 : portable_kernels(dtype);
}

}  // namespace pearl
