// One warp: its registers, which lanes are where, and what it has begun and not waited for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "ptx/native/instruction.h"

namespace ptx {

// Lanes that wait at an instruction until those with a smaller one have come there.
struct LaneGroup {
  int32_t pc;
  uint32_t lanes;
};

struct AsyncCopy {
  uint64_t target;
  const std::byte* source;
  uint32_t size, given;  // bytes of the target; of the source, zeros behind them
};

// A matrix in shared memory that a wgmma reads, as pieces of 16 bytes.
struct AsyncRead {
  uint32_t since;  // epoch
  std::vector<uint64_t> addresses;
};

struct WgmmaGroup {
  std::vector<int32_t> written, read;  // slots of registers
  std::vector<AsyncRead> reads;
};

struct Warp {
  int index = 0;
  int32_t pc = 0;
  uint32_t active = 0;  // lanes at pc
  uint32_t live = 0;    // lanes that have not ended
  std::vector<LaneGroup> apart;
  LaneGroup parked{-1, 0};  // lanes at a barrier that others of the warp may still come to
  bool waits = false;       // at the barrier at pc
  uint32_t awaited = 0;     // lanes behind griddepcontrol.wait
  std::vector<uint32_t> registers;
  std::vector<uint32_t> predicates;  // masks of lanes
  const uint32_t* constants = nullptr;

  std::vector<AsyncCopy> copies;  // not committed yet
  std::deque<std::vector<AsyncCopy>> copy_groups;
  WgmmaGroup wgmmas;  // not committed yet
  std::deque<WgmmaGroup> wgmma_groups;
  bool multiplies = false;  // whether either holds any
  uint64_t fenced = 0;      // the clock at its last fence.proxy.async
  uint32_t fence_epoch = 0;

  const uint32_t* slot(int32_t operand) const {
    return operand >= 0 ? registers.data() + operand * kLanes : constants + ~operand * kLanes;
  }
  uint32_t* own(int32_t operand) { return registers.data() + operand * kLanes; }

  // The 32 or 64 bits of all lanes.
  template <typename T>
  const T* in(int32_t operand) const {
    return reinterpret_cast<const T*>(slot(operand));
  }

  // Stores the lanes of the mask.
  template <typename T>
  void put(int32_t operand, const T* values, uint32_t mask) {
    T* target = reinterpret_cast<T*>(own(operand));
    if (mask == kAllLanes) {
      std::memcpy(target, values, kLanes * sizeof(T));
      return;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (mask >> lane & 1) target[lane] = values[lane];
    }
  }

  void put_predicate(int32_t index, uint32_t values, uint32_t mask) {
    predicates[index] = (predicates[index] & ~mask) | (values & mask);
  }
};

}  // namespace ptx
