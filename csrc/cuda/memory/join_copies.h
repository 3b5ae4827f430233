// The copies that bring a request into a slot of a batch that goes on, and take one out: its rows, its prompt
// pass by pass, its first verdict. Each starts from a block of staging that stays as it is until the copies
// have run. Knows arrays and blocks; not streams, nor when a copy has run.
#pragma once

#include <array>
#include <vector>

#include "coordinator/state.h"
#include "cuda/memory/device_arrays.h"

namespace pearl {

class JoinCopies {
 public:
  static constexpr int kBlocks = 2;  // requests whose copies may wait at once

  // Over the staging that these arrays keep for joins.
  explicit JoinCopies(const DeviceArrays& arrays);
  static size_t staging_bytes(const ArraySizes& sizes);

  // Takes the request in that slot of the host's state into a block, over whatever was there. with_rows: also
  // what the arrays keep of a request; else another lane brings it into the same memory. -> what to copy:
  // all but finish_reason.
  std::vector<Copy> begin(const State& state, int slot, int block, bool with_rows, bool shaped);

  // What has the next prefill pass feed tokens [start, end) of the slot, and of no other; start is a multiple
  // of the chunk.
  std::vector<Copy> pass(int slot, int block, int64_t start, int64_t end);

  // The slot is judged by the next step "join", as those that run are by "verify".
  std::vector<Copy> await_verdict(int slot) const;
  // What that step made of it is so for the rounds that follow.
  std::vector<Copy> take_verdict(int slot) const;
  // The slot is nobody's in the rounds that follow.
  std::vector<Copy> leave(int slot) const;

 private:
  const DeviceArrays& arrays_;
  std::array<Staging, kBlocks> blocks_;
  std::array<int32_t*, kBlocks> ranges_{};  // [passes, B, 2] of each block
  int32_t* reasons_;                        // kIdle, kRunning
};

}  // namespace pearl
