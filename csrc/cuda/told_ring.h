// The host's side of the ring of log-probabilities in pinned memory (verify/tell.py of kernels/): what a
// round's tokens had, slot by slot, for slots that ask. Knows entries; not rounds in flight, nor verdicts. An
// entry's round is stored behind its fields with release at system scope, and read here with acquire: it
// stands for itself, whichever of it and the verdict's entry (csrc/cuda/verdict_ring.h) comes first.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/logprobs.h"

namespace pearl {

class ToldRing {
 public:
  static constexpr int kFields = 3;  // of an entry: as Logprob
  static_assert(sizeof(Logprob) == kFields * sizeof(int32_t), "an entry is copied as it lies");

  // ring: [ring_size, num_slots, 1 + num_rows * (1 + most) * kFields], or nullptr if there is none. most:
  // likeliest tokens told with each.
  ToldRing(int32_t* ring, int ring_size, int num_slots, int num_rows, int most)
      : ring_(ring), ring_size_(ring_size), num_slots_(num_slots), num_rows_(num_rows), most_(most) {}

  // No entry is any round's. Only while no round is in flight.
  void clear() {
    for (int slot = 0; slot < num_slots_; ++slot) clear(slot);
  }

  // No entry of that slot is any round's. Only while no round that it runs in is in flight.
  void clear(int slot) const {
    for (int round = 0; ring_ != nullptr && round < ring_size_; ++round) {
      std::atomic_ref<int32_t>(*entry(round, slot)).store(-1, std::memory_order_relaxed);
    }
  }

  // Whether that round's are there; then they stay until round + ring_size is judged.
  bool has(int64_t round, int slot) const {
    return std::atomic_ref<int32_t>(*entry(round, slot)).load(std::memory_order_acquire) == round;
  }

  // Appends 1 + k entries for each of the round's tokens; k <= most.
  void read(int64_t round, int slot, int num_tokens, int k, std::vector<Logprob>* out) const {
    const int32_t* row = entry(round, slot) + 1;
    for (int i = 0; i < num_tokens; ++i, row += (1 + most_) * kFields) {
      const size_t size = out->size();
      out->resize(size + 1 + k);
      std::memcpy(out->data() + size, row, sizeof(Logprob) * static_cast<size_t>(1 + k));
    }
  }

 private:
  int32_t* entry(int64_t round, int slot) const {
    const size_t width = 1 + static_cast<size_t>(num_rows_) * (1 + most_) * kFields;
    return ring_ + (static_cast<size_t>(round % ring_size_) * num_slots_ + slot) * width;
  }

  int32_t* const ring_;
  const int ring_size_;
  const int num_slots_;
  const int num_rows_;
  const int most_;
};

}  // namespace pearl
