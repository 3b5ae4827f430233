// Memory that the fake driver's copies may touch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "world.h"

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

// A copy whose place was found to be legal when it was asked for.
struct Copy {
  uintptr_t to, from;
  size_t num_bytes;
  Allocation* target;
  Allocation* source;
  // On a stream, or in a graph: an illegal address where the memory is gone by now.
  void run(Context& context, const char* call) const;
};

// Refuses memory that copies may not touch.
Copy legal_copy(Call& c, uintptr_t to, uintptr_t from, size_t num_bytes);

}  // namespace fake
