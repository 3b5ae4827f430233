// Memory that the fake driver's copies may touch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fake {

struct Allocation {
  Allocation(int device, uintptr_t begin, size_t num_bytes, bool is_ours)
      : device(device), begin(begin), num_bytes(num_bytes), is_ours(is_ours) {}
  ~Allocation();
  const int device;  // -1: pinned host memory
  const uintptr_t begin;
  const size_t num_bytes;
  const bool is_ours;  // to be freed, when the world ends
  std::atomic<bool> is_freed{false};
  std::atomic<int> num_copies{0};  // on streams, not yet done
};

}  // namespace fake
