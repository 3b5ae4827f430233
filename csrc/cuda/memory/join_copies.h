// The copies with which a request joins a run, or leaves it: its rows, the range of each prefill pass, its
// first verdict. Their sources are in a block of staging, which must not change before they have run. Knows
// arrays and blocks; not streams, nor when a copy has run.
#pragma once

#include <array>
#include <vector>

#include "coordinator/state.h"
#include "cuda/memory/device_arrays.h"

namespace pearl {

class JoinCopies {
 public:
  static constexpr int kBlocks = 2;  // requests whose copies may be queued at once

  // Uses the staging that these arrays keep for joins.
  explicit JoinCopies(const DeviceArrays& arrays);
  static size_t staging_bytes(const ArraySizes& sizes);

  // Writes the request in that slot of the host's state to a block of staging, over its old contents -> the
  // copies of its rows, all but finish_reason. with_rows: false if another lane copies them to the same
  // memory.
  std::vector<Copy> begin(const State& state, int slot, int block, bool with_rows, bool processed);

  // The next prefill pass feeds tokens [start, end) of this slot, and none of the others. No two
  // passes of a prompt begin in one chunk.
  std::vector<Copy> pass(int slot, int block, int64_t start, int64_t end);

  // The next step "join" judges this slot, as "verify" judges the slots that run.
  std::vector<Copy> await_verdict(int slot) const;
  // The finish_reason that "join" wrote is the slot's in the rounds that follow.
  std::vector<Copy> take_verdict(int slot) const;
  // The slot is idle in the rounds that follow.
  std::vector<Copy> leave(int slot) const;

 private:
  const DeviceArrays& arrays_;
  std::array<Staging, kBlocks> blocks_;
  std::array<int32_t*, kBlocks> ranges_{};  // [passes, B, 2] of each block
  int32_t* reasons_;                        // kIdle, kRunning
};

}  // namespace pearl
