// wgmma: a matrix product of four warps, of which each computes 16 rows, with operands in shared memory.
// The sums are there at once, and registers and memory are guarded until wgmma.wait_group.
#include <algorithm>
#include <array>

#include "ptx/native/opcodes/lanes.h"
#include "ptx/native/opcodes/matrices.h"

namespace ptx {

namespace {

constexpr int kK = 16, kWidestN = 256;

// A descriptor of a matrix in shared memory, of 16-bit entries in rows (or columns) of a swizzled width.
class Tile {
 public:
  Tile(uint64_t descriptor, bool transposed) : transposed_(transposed) {
    start_ = (descriptor & 0x3FFF) << 4;
    leading_ = (descriptor >> 16 & 0x3FFF) << 4;
    stride_ = (descriptor >> 32 & 0x3FFF) << 4;
    const uint64_t swizzle = descriptor >> 62;
    if (swizzle == 0 || (descriptor >> 49 & 7) != 0) fail("descriptor", descriptor);
    width_ = 256u >> swizzle;
    bits_ = (width_ >> 4) - 1;
  }

  // Of the 8 entries (row .., k) .. that lie together: along k, or along rows if it is transposed.
  uint64_t address(uint64_t row, uint64_t k) const {
    uint64_t address = start_;
    if (transposed_) {
      const uint64_t across = width_ / 2;
      address += row / across * leading_ + row % across * 2 + k / 8 * stride_ + k % 8 * width_;
    } else {
      address += row / 8 * stride_ + row % 8 * width_ + 2 * k;
    }
    return address ^ ((address >> 7 & bits_) << 4);
  }

 private:
  bool transposed_;
  uint64_t start_, leading_, stride_, bits_;
  uint32_t width_;
};

// Rows of the operand from `first` on -> out[row][k], all pieces checked and remembered.
template <float (*from)(uint32_t)>
void read_tile(Machine& machine, Warp& warp, const Tile& tile, bool transposed, int first, int rows,
               float (*out)[kK], AsyncRead* reads) {
  const auto piece = [&](int row, int k) {
    const uint64_t address = tile.address(static_cast<uint64_t>(row), static_cast<uint64_t>(k));
    const std::byte* place = machine.shared().at(address, 16);
    machine.shared().shadows().read_async(address, 16, warp.index, machine.fences(), warp.fence_epoch);
    reads->addresses.push_back(address);
    std::array<uint16_t, 8> entries;
    std::memcpy(entries.data(), place, 16);
    return entries;
  };
  if (transposed) {
    for (int k = 0; k < kK; ++k) {
      for (int row = 0; row < rows; row += 8) {
        const auto entries = piece(first + row, k);
        for (int i = 0; i < 8; ++i) out[row + i][k] = from(entries[i]);
      }
    }
    return;
  }
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < kK; k += 8) {
      const auto entries = piece(first + row, k);
      for (int i = 0; i < 8; ++i) out[row][k + i] = from(entries[i]);
    }
  }
}

uint64_t same_in_all_lanes(const Warp& warp, int32_t operand) {
  const uint64_t* values = warp.in<uint64_t>(operand);
  for (int lane = 1; lane < kLanes; ++lane) {
    if (values[lane] != values[0]) fail("descriptor", values[lane], 0, lane);
  }
  return values[0];
}

// d in braces, a (four registers in braces, or a descriptor), the descriptor of b, whether d is added to,
// whether a and b are transposed
template <float (*from)(uint32_t), bool in_registers>
void multiply(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  whole_warp(warp, mask);
  const int num_sums = in[0], n = 2 * num_sums;
  const int32_t *d = &in.operands[1], *a = d + num_sums;
  const int32_t* rest = in_registers ? a + 5 : a + 1;
  const uint32_t adds = warp.predicates[rest[1]];
  if (adds != 0 && adds != kAllLanes) fail("descriptor", adds);
  AsyncRead reads{machine.epoch(), {}};
  float left[16][kK], right[kWidestN][kK];
  if constexpr (in_registers) {
    for (int i = 0; i < 4; ++i) {
      read_left<from>(warp.in<uint32_t>(a[1 + i]), i, left);
      warp.wgmmas.read.push_back(a[1 + i]);
    }
  } else {
    const bool transposed = rest[2] != 0;
    const Tile tile(same_in_all_lanes(warp, a[0]), transposed);
    read_tile<from>(machine, warp, tile, transposed, 16 * (warp.index % 4), 16, left, &reads);
  }
  const bool transposed = rest[3] != 0;
  read_tile<from>(machine, warp, Tile(same_in_all_lanes(warp, rest[0]), transposed), transposed, 0, n, right,
                  &reads);
  float by_k[kK][kWidestN], sum[16][kWidestN];
  for (int row = 0; row < n; ++row) {
    for (int k = 0; k < kK; ++k) by_k[k][row] = right[row][k];
  }
  // Register i of d: rows l / 4 and l / 4 + 8 of a lane l, columns 8 (i / 4) + 2 (l % 4) and the one beside
  // it.
  const auto row_of = [](int i, int lane) { return lane / 4 + 8 * (i % 4 / 2); };
  const auto column_of = [](int i, int lane) { return 8 * (i / 4) + 2 * (lane % 4) + i % 2; };
  for (int i = 0; i < num_sums; ++i) {
    const uint32_t* values = warp.in<uint32_t>(d[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      sum[row_of(i, lane)][column_of(i, lane)] = adds ? f32(values[lane]) : 0.0f;
    }
  }
  accumulate(sum[0], left, by_k[0], kWidestN, n);
  for (int i = 0; i < num_sums; ++i) {
    uint32_t out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = bits_of(sum[row_of(i, lane)][column_of(i, lane)]);
    warp.put(d[i], out, mask);
    warp.wgmmas.written.push_back(d[i]);
  }
  warp.wgmmas.reads.push_back(std::move(reads));
  warp.multiplies = true;
}

void commit(Machine&, Warp& warp, const Instruction&, uint32_t mask) {
  whole_warp(warp, mask);
  warp.wgmma_groups.push_back(std::move(warp.wgmmas));
  warp.wgmmas = {};
}

void wait(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  whole_warp(warp, mask);
  while (warp.wgmma_groups.size() > static_cast<size_t>(in[0])) {
    for (const AsyncRead& read : warp.wgmma_groups.front().reads) {
      for (const uint64_t address : read.addresses) {
        machine.shared().shadows().read_until_now(address, 16, warp.index, read.since);
      }
    }
    warp.wgmma_groups.pop_front();
  }
  warp.multiplies = !warp.wgmma_groups.empty() || !warp.wgmmas.written.empty();
}

}  // namespace

void add_wgmma(Opcodes* table) {
  table->push_back({"wgmma.mma_async.f32.bf16.registers", "W+w+qpii", multiply<bf16, true>});
  table->push_back({"wgmma.mma_async.f32.f16.registers", "W+w+qpii", multiply<f16, true>});
  table->push_back({"wgmma.mma_async.f32.bf16.shared", "W+qqpii", multiply<bf16, false>});
  table->push_back({"wgmma.mma_async.f32.f16.shared", "W+qqpii", multiply<f16, false>});
  table->push_back({"wgmma.commit_group", "", commit});
  table->push_back({"wgmma.wait_group", "i", wait});
}

}  // namespace ptx
