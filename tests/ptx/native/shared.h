// The shared memory of one program: its bytes, which begin as poison, and what is remembered of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ptx/native/shadows.h"

namespace ptx {

constexpr uint64_t kSharedBase = 1024;  // the address of its first byte

class Shared {
 public:
  Shared(const Epochs& epochs, uint32_t num_bytes, uint32_t granule);

  // Poison everywhere.
  void start_program();

  // Where an access of this size lies, after its bounds and alignment are checked. Throws Fault.
  std::byte* at(uint64_t address, uint32_t size) const;
  // The same, and the bytes there become poison when the next program starts.
  std::byte* to_store(uint64_t address, uint32_t size);
  Shadows& shadows() { return shadows_; }

 private:
  uint32_t num_bytes_;
  uint64_t written_ = 0;  // bytes from the first to the last that was stored
  mutable std::vector<std::byte> bytes_;
  Shadows shadows_;
};

}  // namespace ptx
