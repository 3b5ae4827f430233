#include "ptx/native/shared.h"

#include <algorithm>
#include <cstring>

namespace ptx {

namespace {

constexpr std::byte kPoison{0xFF};

}  // namespace

Shared::Shared(const Epochs& epochs, uint32_t num_bytes, uint32_t granule)
    : num_bytes_(num_bytes),
      bytes_(num_bytes + 16, kPoison),
      shadows_(epochs, kSharedBase, num_bytes, granule) {}

void Shared::start_program() {
  std::memset(bytes_.data(), static_cast<int>(kPoison), written_);
  written_ = 0;
}

std::byte* Shared::at(uint64_t address, uint32_t size) const {
  const bool is_inside = address >= kSharedBase && address + size <= kSharedBase + num_bytes_;
  if (is_inside && !(address & (size - 1))) return bytes_.data() + (address - kSharedBase);
  Fault fault;
  fault.kind = is_inside ? "misaligned" : "shared_bounds";
  fault.address = address;
  fault.size = size;
  fault.values = {num_bytes_};
  throw fault;
}

std::byte* Shared::to_store(uint64_t address, uint32_t size) {
  std::byte* place = at(address, size);
  written_ = std::max(written_, address - kSharedBase + size);
  return place;
}

}  // namespace ptx
