#include "cuda/memory/join_copies.h"

#include <algorithm>

namespace pearl {

namespace {

size_t num_passes(const ArraySizes& sizes) {
  return static_cast<size_t>((sizes.capacity + sizes.prefill_chunk - 1) / sizes.prefill_chunk);
}

size_t range_values(const ArraySizes& sizes) { return 2 * static_cast<size_t>(sizes.num_slots); }

size_t block_bytes(const ArraySizes& sizes) {
  return DeviceArrays::row_bytes(sizes, 1) + Staging::bytes<int32_t>(num_passes(sizes) * range_values(sizes));
}

}  // namespace

size_t JoinCopies::staging_bytes(const ArraySizes& sizes) {
  return Staging::bytes<int32_t>(2) + kBlocks * block_bytes(sizes);
}

JoinCopies::JoinCopies(const DeviceArrays& arrays) : arrays_(arrays) {
  Staging all = arrays.join_staging();
  reasons_ = all.take<int32_t>(2);
  reasons_[0] = static_cast<int32_t>(FinishReason::kIdle);
  reasons_[1] = static_cast<int32_t>(FinishReason::kRunning);
  const size_t num_bytes = block_bytes(arrays.sizes());
  for (Staging& block : blocks_) block = Staging(all.take<char>(num_bytes), num_bytes);
}

std::vector<Copy> JoinCopies::begin(const State& state, int slot, int block, bool with_rows, bool processed) {
  const ArraySizes& sizes = arrays_.sizes();
  std::vector<Copy> copies;
  blocks_[block].clear();
  if (with_rows) arrays_.add_rows(state, slot, slot + 1, processed, &blocks_[block], &copies);
  ranges_[block] = blocks_[block].take<int32_t>(num_passes(sizes) * range_values(sizes));
  return copies;
}

std::vector<Copy> JoinCopies::pass(int slot, int block, int64_t start, int64_t end) {
  const size_t size = range_values(arrays_.sizes());
  int32_t* const ranges = ranges_[block] + size * static_cast<size_t>(start / arrays_.sizes().prefill_chunk);
  std::fill(ranges, ranges + size, 0);
  ranges[2 * slot] = static_cast<int32_t>(start);
  ranges[2 * slot + 1] = static_cast<int32_t>(end);
  return {{arrays_.at().chunk, address(ranges), size * sizeof(int32_t)}};
}

std::vector<Copy> JoinCopies::await_verdict(int slot) const {
  return {{arrays_.at().joining + static_cast<size_t>(slot) * 4, address(reasons_ + 1), 4}};
}

std::vector<Copy> JoinCopies::take_verdict(int slot) const {
  const size_t row = static_cast<size_t>(slot) * 4;
  return {{arrays_.at().finish_reason + row, arrays_.at().joining + row, 4},
          {arrays_.at().joining + row, address(reasons_), 4}};
}

std::vector<Copy> JoinCopies::leave(int slot) const {
  return {{arrays_.at().finish_reason + static_cast<size_t>(slot) * 4, address(reasons_), 4}};
}

}  // namespace pearl
