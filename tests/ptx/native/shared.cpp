#include "ptx/native/shared.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ptx {

namespace {

constexpr uint32_t kPromised = 0xFFFFFFFF;  // in place of an epoch: a cp.async is under way
constexpr std::byte kPoison{0xFF};

}  // namespace

Shared::Shared(uint32_t num_bytes, uint32_t granule)
    : num_bytes_(num_bytes),
      shift_(static_cast<uint32_t>(std::countr_zero(granule))),
      bytes_(num_bytes + 16, kPoison),
      shadows_((num_bytes >> shift_) + 1) {}

void Shared::start_program() {
  std::memset(bytes_.data(), static_cast<int>(kPoison), written_);
  written_ = 0;
  first_epoch_ = ++epoch_;
}

void Shared::forget(uint64_t address, uint32_t size) {
  uint32_t count;
  Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) *shadow = {};
}

void Shared::race(const char* kind, uint64_t address, uint32_t size, uint32_t others) {
  Fault fault;
  fault.kind = kind;
  fault.address = address;
  fault.size = size;
  fault.others = others;
  throw fault;
}

std::byte* Shared::at(uint64_t address, uint32_t size) const {
  if (address < kSharedBase || address + size > kSharedBase + num_bytes_) {
    Fault fault;
    fault.kind = "shared_bounds";
    fault.address = address;
    fault.size = size;
    fault.values = {num_bytes_};
    throw fault;
  }
  if (address & (size - 1)) race("misaligned", address, size, 0);
  return bytes_.data() + (address - kSharedBase);
}

Shared::Shadow* Shared::shadows_of(uint64_t address, uint32_t size, uint32_t* count) {
  const uint64_t offset = address - kSharedBase;
  *count = ((offset + size - 1) >> shift_) - (offset >> shift_) + 1;
  return shadows_.data() + (offset >> shift_);
}

void Shared::read(uint64_t address, uint32_t size, int warp) {
  const uint32_t own = 1u << warp;
  uint32_t count;
  Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->write_epoch >= epoch_ && !(shadow->write_epoch == epoch_ && (shadow->writers & own))) {
      race(shadow->write_epoch == kPromised ? "unwaited_read" : "race_read", address, size, shadow->writers);
    }
    shadow->readers = shadow->read_epoch == epoch_ ? shadow->readers | own : own;
    shadow->read_epoch = epoch_;
  }
}

void Shared::read_async(uint64_t address, uint32_t size, int warp, const std::vector<uint64_t>& fences,
                        uint32_t fence_epoch) {
  read(address, size, warp);
  uint32_t count;
  const Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->stored == 0 || shadow->write_epoch < first_epoch_) continue;
    if (fence_epoch > shadow->write_epoch) continue;
    for (uint32_t writers = shadow->writers; writers; writers &= writers - 1) {
      if (fences[std::countr_zero(writers)] < shadow->stored) {
        race("unfenced", address, size, shadow->writers);
      }
    }
  }
}

void Shared::read_until_now(uint64_t address, uint32_t size, int warp, uint32_t since) {
  const uint32_t own = 1u << warp;
  uint32_t count;
  Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) {
    const bool by_others = (shadow->writers & ~own) != 0;
    if (shadow->write_epoch > since || (shadow->write_epoch == since && by_others)) {
      race("overwritten", address, size, shadow->writers);
    }
    shadow->readers = shadow->read_epoch == epoch_ ? shadow->readers | own : own;
    shadow->read_epoch = epoch_;
  }
}

void Shared::write(uint64_t address, uint32_t size, const std::byte* bytes, int warp, uint64_t clock) {
  const uint32_t own = 1u << warp;
  written_ = std::max(written_, address - kSharedBase + size);
  uint32_t count;
  Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->write_epoch == kPromised) race("unwaited_write", address, size, shadow->writers);
    const bool written = shadow->write_epoch == epoch_ && (shadow->writers & ~own);
    const bool was_read = shadow->read_epoch == epoch_ && (shadow->readers & ~own);
    if (written || was_read) {
      // Several warps that hold the same values may all store them.
      const bool is_same = std::memcmp(bytes_.data() + (address - kSharedBase), bytes, size) == 0;
      if (written && !is_same) race("race_write", address, size, shadow->writers & ~own);
      if (was_read && !(is_same && shadow->write_epoch == epoch_)) {
        race("race_overwrite", address, size, shadow->readers & ~own);
      }
    }
    shadow->writers = shadow->write_epoch == epoch_ ? shadow->writers | own : own;
    shadow->write_epoch = epoch_;
    shadow->stored = clock;
  }
}

void Shared::promise(uint64_t address, uint32_t size, int warp) {
  std::byte* target = at(address, size);
  const uint32_t own = 1u << warp;
  written_ = std::max(written_, address - kSharedBase + size);
  uint32_t count;
  Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->write_epoch == kPromised) race("unwaited_write", address, size, shadow->writers);
    if (shadow->write_epoch == epoch_ && (shadow->writers & ~own)) {
      race("race_write", address, size, shadow->writers & ~own);
    }
    if (shadow->read_epoch == epoch_ && (shadow->readers & ~own)) {
      race("race_overwrite", address, size, shadow->readers & ~own);
    }
    shadow->writers = own;
    shadow->write_epoch = kPromised;
    shadow->stored = 0;
  }
  std::memset(target, static_cast<int>(kPoison), size);
}

void Shared::deliver(uint64_t address, uint32_t size, int warp) {
  uint32_t count;
  Shadow* shadow = shadows_of(address, size, &count);
  for (; count--; ++shadow) {
    shadow->writers = 1u << warp;
    shadow->write_epoch = epoch_;
    shadow->stored = 0;
  }
}

}  // namespace ptx
