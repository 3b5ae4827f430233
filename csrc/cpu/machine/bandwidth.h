// The rate at which a core set reads memory: the ceiling of a decode step.
#pragma once

#include <cstdint>

#include "cpu/machine/core_set.h"

namespace pearl {

// Bytes per second of the best pass over `bytes` in huge pages, each core reading its own contiguous part
// with vector loads and prefetches like a matmul's; passes are repeated for `seconds` (two at least). A size
// that fits a cache measures that cache. Throws std::invalid_argument, OutOfMemory.
double measure_bandwidth(CoreSet& core_set, int64_t bytes, double seconds);

}  // namespace pearl
