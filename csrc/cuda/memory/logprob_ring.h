// The host's side of the ring of log-probabilities in pinned memory (kernels/verify/publish_logprobs.py):
// those of a round's tokens, slot by slot, for requests that ask for them. Knows entries; not rounds in
// flight, nor verdicts. A device stores the fields of an entry, then its round with release at system scope;
// the host reads the round with acquire. The verdict's entry (csrc/cuda/memory/verdict_ring.h) may come
// before it or after it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sampling/logprobs.h"

namespace pearl {

class LogprobRing {
 public:
  static constexpr int kFields = 3;  // of an entry: as Logprob
  static_assert(sizeof(Logprob) == kFields * sizeof(int32_t), "an entry is copied as it lies");

  // ring: [ring_size, num_slots, 1 + num_rows * (1 + most) * kFields], or nullptr if there is none. most: of
  // likeliest tokens, for each token.
  LogprobRing(int32_t* ring, int ring_size, int num_slots, int num_rows, int most)
      : ring_(ring), ring_size_(ring_size), num_slots_(num_slots), num_rows_(num_rows), most_(most) {}

  // Clears all entries. Only while no round is in flight.
  void clear() {
    for (int slot = 0; slot < num_slots_; ++slot) clear(slot);
  }

  // Clears the entries of a slot. Only while no round that it runs in is in flight.
  void clear(int slot) const {
    for (int round = 0; ring_ != nullptr && round < ring_size_; ++round) {
      std::atomic_ref<int32_t>(*entry(round, slot)).store(-1, std::memory_order_relaxed);
    }
  }

  // Whether the round's entry has come. It stays until round + ring_size is judged.
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
