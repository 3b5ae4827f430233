// The matmul over tile registers: included inside the anonymous namespace of a kernels_amx*.cpp, which has
// defined configure_tiles, tile_zero, tile_load, tile_store, tile_dot, prefetch, kIsa, base() (the table of
// everything else), and what grouped/tile_matmul_body.h names. A tile has 16 rows of 64 bytes: 16 rows of 32
// bf16 of x, 16 pairs of K by 16 columns of w, or 16 x 16 fp32 sums. Always 16 rows, whatever the number of
// rows asked for: rows that are not there are computed and dropped. (No #pragma once, no #include: it is a
// body.)

constexpr int kDepth = 32;  // K of one tile
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kSumsStride = kPanel * kLanes * 4;  // bytes from row to row of raw sums

inline void prefetch_tile(const char* p) {
  for (int line = 0; line < 16; ++line) prefetch(p + line * 64);
}

// Raw sums of 16 rows and up to 4 blocks: for steps that memory bounds. Strides in bytes; a tile of `ahead`
// is fetched for each that is used, in memory order.
void four_blocks(const char* x, int64_t x_stride, const char* w, int64_t w_stride, int steps, int num_blocks,
                 const char* ahead, float* sums) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int step = 0; step < steps; ++step) {
    tile_load<4>(x, x_stride);
    tile_load<5>(w, 64);
    prefetch_tile(ahead);
    tile_dot<0, 4, 5>();
    if (num_blocks > 1) {
      tile_load<6>(w + w_stride, 64);
      prefetch_tile(ahead + kTileBytes);
      tile_dot<1, 4, 6>();
    }
    if (num_blocks > 2) {
      tile_load<7>(w + 2 * w_stride, 64);
      prefetch_tile(ahead + 2 * kTileBytes);
      tile_dot<2, 4, 7>();
    }
    if (num_blocks > 3) {
      tile_load<5>(w + 3 * w_stride, 64);
      prefetch_tile(ahead + 3 * kTileBytes);
      tile_dot<3, 4, 5>();
    }
    x += kDepth * 2;
    w += kTileBytes;
    ahead += num_blocks * kTileBytes;
  }
  tile_store<0>(sums, kSumsStride);
  if (num_blocks > 1) tile_store<1>(sums + kLanes, kSumsStride);
  if (num_blocks > 2) tile_store<2>(sums + 2 * kLanes, kSumsStride);
  if (num_blocks > 3) tile_store<3>(sums + 3 * kLanes, kSumsStride);
}

// Raw sums of 32 rows and 1 or 2 blocks, each tile used twice: for a prefill, which arithmetic bounds.
void two_by_two(const char* x, int64_t x_stride, const char* w, int64_t w_stride, int steps, int num_blocks,
                const char* ahead, float* sums) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int step = 0; step < steps; ++step) {
    tile_load<4>(x, x_stride);
    tile_load<5>(x + kTileRows * x_stride, x_stride);
    tile_load<6>(w, 64);
    prefetch_tile(ahead);
    tile_dot<0, 4, 6>();
    tile_dot<2, 5, 6>();
    if (num_blocks > 1) {
      tile_load<7>(w + w_stride, 64);
      prefetch_tile(ahead + kTileBytes);
      tile_dot<1, 4, 7>();
      tile_dot<3, 5, 7>();
    }
    x += kDepth * 2;
    w += kTileBytes;
    ahead += num_blocks * kTileBytes;
  }
  float* below = sums + kTileRows * kPanel * kLanes;
  tile_store<0>(sums, kSumsStride);
  tile_store<2>(below, kSumsStride);
  if (num_blocks > 1) {
    tile_store<1>(sums + kLanes, kSumsStride);
    tile_store<3>(below + kLanes, kSumsStride);
  }
}

// MatmulArgs with k a multiple of 32 and x with round_up(rows, 16) rows that may be read.
void tile_matmul(const MatmulArgs& a) {
  alignas(64) float sums[2 * kTileRows * kPanel * kLanes];
  const char* x = static_cast<const char*>(a.x);
  const char* w = static_cast<const char*>(a.w);
  const int64_t x_stride = a.x_stride * 2, w_stride = a.w_stride * 2;
  const int steps = a.k / kDepth;
  const int width = a.rows > kTileRows ? 2 : kPanel;  // blocks between two epilogues
  for (int first = 0; first < a.num_blocks; first += width) {
    const int blocks = a.num_blocks - first < width ? a.num_blocks - first : width;
    const bool last = first + width >= a.num_blocks;
    const char* here = w + first * w_stride;
    const char* after = last ? static_cast<const char*>(a.next_w) : here + width * w_stride;
    for (int row = 0; row < a.rows;) {
      const char* ahead = row == 0 && after ? after : here;
      const int left = a.rows - row;
      const int rows = left < 2 * kTileRows ? left : 2 * kTileRows;
      if (left > kTileRows) {
        two_by_two(x + row * x_stride, x_stride, here, w_stride, steps, blocks, ahead, sums);
      } else {
        four_blocks(x + row * x_stride, x_stride, here, w_stride, steps, blocks, ahead, sums);
      }
      base().finish(a, sums, row, rows, first, blocks);
      row += rows;
    }
  }
}

#include "cpu/kernels/grouped/tile_matmul_body.h"

Kernels with_tiles() {
  Kernels table = base();
  table.isa = kIsa;
  table.prepare_thread = configure_tiles;
  table.matmul = tile_matmul;
  table.grouped_matmul = tile_grouped_matmul;
  return table;
}
