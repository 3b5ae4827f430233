// The host's side of the verdict ring in pinned memory (pearl_rt/state.py): what a round committed, slot by
// slot. A GPU stores an entry's payload, then its round with release at system scope; the host reads the
// round with acquire. Knows entries; not rounds in flight, nor what becomes of a verdict.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "coordinator/ring.h"

namespace pearl {

struct VerdictEntry {
  int32_t accept_len;
  int32_t num_judged;
  int32_t pending_before;
  FinishReason finish_reason;
  int32_t num_new;
  const int32_t* token_ids;  // [num_new]; [accept_len] is the candidate of a row that cannot be used
};

class VerdictRing {
 public:
  static constexpr int kHeader = 6;

  // ring: [ring_size, num_slots, kHeader + gamma + 1].
  VerdictRing(int32_t* ring, int ring_size, int num_slots, int gamma)
      : ring_(ring), ring_size_(ring_size), num_slots_(num_slots), width_(kHeader + gamma + 1) {}

  int size() const { return ring_size_; }

  // Clears all entries. Only while no round is in flight.
  void clear() { std::fill(ring_, ring_ + static_cast<size_t>(ring_size_) * num_slots_ * width_, -1); }

  // Clears the entries of a slot. Only while no round that it runs in is in flight.
  void clear(int slot) const {
    for (int round = 0; round < ring_size_; ++round) {
      std::atomic_ref<int32_t>(*entry(round, slot)).store(-1, std::memory_order_relaxed);
    }
  }

  // Whether the verdict of that round has come. It stays until round + ring_size is judged.
  bool has(int64_t round, int slot) const {
    return std::atomic_ref<int32_t>(*entry(round, slot)).load(std::memory_order_acquire) == round;
  }

  VerdictEntry read(int64_t round, int slot) const {
    const int32_t* e = entry(round, slot);
    return {e[1], e[2], e[3], static_cast<FinishReason>(e[4]), e[5], e + kHeader};
  }

 private:
  int32_t* entry(int64_t round, int slot) const {
    return ring_ + (static_cast<size_t>(round % ring_size_) * num_slots_ + slot) * width_;
  }

  int32_t* const ring_;
  const int ring_size_;
  const int num_slots_;
  const int width_;
};

}  // namespace pearl
