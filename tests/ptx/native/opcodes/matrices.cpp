// Matrices of a warp: ldmatrix, stmatrix and mma. Sums are of fp32, in the order of k, behind the
// accumulator.
#include "ptx/native/opcodes/matrices.h"

#include <algorithm>

#include "ptx/native/opcodes/lanes.h"

namespace ptx {

namespace {

// One function for several instruction sets: the bits are the same on all of them, as nothing is contracted.
#if defined(__x86_64__) && defined(__linux__)
#define PTX_ANY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PTX_ANY_WIDTH
#endif

constexpr uint32_t kRowBytes = 16;  // a row of an 8x8 matrix of 16 bits

template <int matrices>
void row_addresses(const Warp& warp, const Instruction& in, int at, uint64_t* out) {
  const uint32_t* base = warp.in<uint32_t>(in[at]);
  for (int lane = 0; lane < 8 * matrices; ++lane) out[lane] = base[lane] + static_cast<uint32_t>(in[at + 1]);
}

[[noreturn]] void with_lane(Fault& fault, int lane) {
  fault.lane = lane;
  throw fault;
}

// Lane l has the entries (l / 4, 2 (l % 4)) and the one beside it; transposed, the entries below each other.
template <bool transposed>
int entry(int lane, int which) {
  const int row = lane / 4, column = 2 * (lane % 4) + which;
  return transposed ? column * 8 + row : row * 8 + column;
}

// n, n registers, an address
template <int matrices, bool transposed>
void load_matrix(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  whole_warp(warp, mask);
  uint64_t addresses[kLanes];
  row_addresses<matrices>(warp, in, matrices + 1, addresses);
  uint16_t rows[matrices * 64];
  for (int row = 0; row < 8 * matrices; ++row) {
    try {
      const std::byte* place = machine.shared().at(addresses[row], kRowBytes);
      machine.shared().shadows().read(addresses[row], kRowBytes, warp.index);
      std::memcpy(rows + row * 8, place, kRowBytes);
    } catch (Fault& fault) {
      with_lane(fault, row);
    }
  }
  for (int matrix = 0; matrix < matrices; ++matrix) {
    uint32_t out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint16_t* entries = rows + matrix * 64;
      out[lane] = entries[entry<transposed>(lane, 0)] |
                  static_cast<uint32_t>(entries[entry<transposed>(lane, 1)]) << 16;
    }
    warp.put(in[1 + matrix], out, mask);
  }
}

// an address, n, n registers
template <int matrices, bool transposed>
void store_matrix(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  whole_warp(warp, mask);
  uint64_t addresses[kLanes];
  row_addresses<matrices>(warp, in, 0, addresses);
  uint16_t rows[matrices * 64];
  for (int matrix = 0; matrix < matrices; ++matrix) {
    const uint32_t* values = warp.in<uint32_t>(in[3 + matrix]);
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[matrix * 64 + entry<transposed>(lane, 0)] = static_cast<uint16_t>(values[lane]);
      rows[matrix * 64 + entry<transposed>(lane, 1)] = static_cast<uint16_t>(values[lane] >> 16);
    }
  }
  const uint64_t clock = machine.tick();
  for (int row = 0; row < 8 * matrices; ++row) {
    try {
      std::byte* place = machine.shared().to_store(addresses[row], kRowBytes);
      const auto* bytes = reinterpret_cast<const std::byte*>(rows + row * 8);
      machine.shared().shadows().write(addresses[row], kRowBytes, place, bytes, warp.index, clock);
      std::memcpy(place, bytes, kRowBytes);
    } catch (Fault& fault) {
      with_lane(fault, row);
    }
  }
}

// d [16, 8], a [16, 16], b [16, 8], c [16, 8], each in braces
template <float (*from)(uint32_t)>
void multiply(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  whole_warp(warp, mask);
  const int32_t *d = &in.operands[1], *a = d + 5, *b = a + 5, *c = b + 3;
  float left[16][16], right[16][8], sum[16][8];
  for (int i = 0; i < 4; ++i) read_left<from>(warp.in<uint32_t>(a[i]), i, left);
  for (int i = 0; i < 2; ++i) {
    const uint32_t* values = warp.in<uint32_t>(b[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int k = 2 * (lane % 4) + 8 * i, n = lane / 4;
      right[k][n] = from(values[lane] & 0xFFFF);
      right[k + 1][n] = from(values[lane] >> 16);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const uint32_t* values = warp.in<uint32_t>(c[i]);
    for (int lane = 0; lane < kLanes; ++lane)
      sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = f32(values[lane]);
  }
  accumulate(sum[0], left, right[0], 8, 8);
  for (int i = 0; i < 4; ++i) {
    uint32_t out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      out[lane] = bits_of(sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
    }
    warp.put(d[i], out, mask);
  }
}

template <int matrices>
void add_count(Opcodes* table) {
  const std::string count = ".x" + std::to_string(matrices);
  table->push_back({"ldmatrix" + count, "W+a", load_matrix<matrices, false>});
  table->push_back({"ldmatrix" + count + ".trans", "W+a", load_matrix<matrices, true>});
  table->push_back({"stmatrix" + count, "aw+", store_matrix<matrices, false>});
  table->push_back({"stmatrix" + count + ".trans", "aw+", store_matrix<matrices, true>});
}

}  // namespace

PTX_ANY_WIDTH void accumulate(float* sum, const float (*left)[16], const float* right, int stride, int n) {
  for (int m = 0; m < 16; ++m) {
    for (int first = 0; first < n; first += 8) {
      float total[8];
      for (int i = 0; i < 8; ++i) total[i] = sum[m * stride + first + i];
      for (int k = 0; k < 16; ++k) {
        for (int i = 0; i < 8; ++i) total[i] += left[m][k] * right[k * stride + first + i];
      }
      for (int i = 0; i < 8; ++i) sum[m * stride + first + i] = total[i];
    }
  }
}

void add_matrices(Opcodes* table) {
  add_count<1>(table);
  add_count<2>(table);
  add_count<4>(table);
  table->push_back({"mma.m16n8k16.row.col.f32.bf16.bf16.f32", "W+w+w+w+", multiply<bf16>});
  table->push_back({"mma.m16n8k16.row.col.f32.f16.f16.f32", "W+w+w+w+", multiply<f16>});
}

}  // namespace ptx
