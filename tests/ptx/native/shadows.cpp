#include "ptx/native/shadows.h"

#include <bit>
#include <cstring>

namespace ptx {

namespace {

constexpr uint32_t kPromised = 0xFFFFFFFF;  // in place of an epoch: a cp.async is under way

[[noreturn]] void race(const char* kind, uint64_t address, uint32_t size, uint32_t others) {
  Fault fault;
  fault.kind = kind;
  fault.address = address;
  fault.size = size;
  fault.others = others;
  throw fault;
}

}  // namespace

Shadows::Shadows(const Epochs& epochs, uint64_t base, uint64_t num_bytes, uint32_t granule)
    : epochs_(&epochs),
      base_(base & ~uint64_t{15}),
      shift_(static_cast<uint32_t>(std::countr_zero(granule))),
      shadows_(((base - base_ + num_bytes) >> shift_) + 1) {}

void Shadows::forget(uint64_t address, uint32_t size) {
  uint32_t count;
  Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) *shadow = {};
}

Shadows::Shadow* Shadows::of(uint64_t address, uint32_t size, uint32_t* count) {
  const uint64_t offset = address - base_;
  *count = ((offset + size - 1) >> shift_) - (offset >> shift_) + 1;
  return shadows_.data() + (offset >> shift_);
}

void Shadows::read(uint64_t address, uint32_t size, int warp) {
  const uint32_t own = 1u << warp;
  uint32_t count;
  Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->write_epoch >= epochs_->now &&
        !(shadow->write_epoch == epochs_->now && (shadow->writers & own))) {
      race(shadow->write_epoch == kPromised ? "unwaited_read" : "race_read", address, size, shadow->writers);
    }
    shadow->readers = shadow->read_epoch == epochs_->now ? shadow->readers | own : own;
    shadow->read_epoch = epochs_->now;
  }
}

void Shadows::read_async(uint64_t address, uint32_t size, int warp, const std::vector<uint64_t>& fences,
                         uint32_t fence_epoch) {
  read(address, size, warp);
  uint32_t count;
  const Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->stored == 0 || shadow->write_epoch < epochs_->first) continue;
    if (fence_epoch > shadow->write_epoch) continue;
    for (uint32_t writers = shadow->writers; writers; writers &= writers - 1) {
      if (fences[std::countr_zero(writers)] < shadow->stored) {
        race("unfenced", address, size, shadow->writers);
      }
    }
  }
}

void Shadows::read_until_now(uint64_t address, uint32_t size, int warp, uint32_t since) {
  const uint32_t own = 1u << warp;
  uint32_t count;
  Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) {
    const bool by_others = (shadow->writers & ~own) != 0;
    if (shadow->write_epoch > since || (shadow->write_epoch == since && by_others)) {
      race("overwritten", address, size, shadow->writers);
    }
    shadow->readers = shadow->read_epoch == epochs_->now ? shadow->readers | own : own;
    shadow->read_epoch = epochs_->now;
  }
}

void Shadows::write(uint64_t address, uint32_t size, const std::byte* place, const std::byte* bytes, int warp,
                    uint64_t clock) {
  const uint32_t own = 1u << warp;
  uint32_t count;
  Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->write_epoch == kPromised) race("unwaited_write", address, size, shadow->writers);
    const bool written = shadow->write_epoch == epochs_->now && (shadow->writers & ~own);
    const bool was_read = shadow->read_epoch == epochs_->now && (shadow->readers & ~own);
    if (written || was_read) {
      // Several warps that hold the same values may all store them.
      const bool is_same = std::memcmp(place, bytes, size) == 0;
      if (written && !is_same) race("race_write", address, size, shadow->writers & ~own);
      if (was_read && !(is_same && shadow->write_epoch == epochs_->now)) {
        race("race_overwrite", address, size, shadow->readers & ~own);
      }
    }
    shadow->writers = shadow->write_epoch == epochs_->now ? shadow->writers | own : own;
    shadow->write_epoch = epochs_->now;
    shadow->stored = clock;
  }
}

void Shadows::promise(uint64_t address, uint32_t size, int warp) {
  const uint32_t own = 1u << warp;
  uint32_t count;
  Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) {
    if (shadow->write_epoch == kPromised) race("unwaited_write", address, size, shadow->writers);
    if (shadow->write_epoch == epochs_->now && (shadow->writers & ~own)) {
      race("race_write", address, size, shadow->writers & ~own);
    }
    if (shadow->read_epoch == epochs_->now && (shadow->readers & ~own)) {
      race("race_overwrite", address, size, shadow->readers & ~own);
    }
    shadow->writers = own;
    shadow->write_epoch = kPromised;
    shadow->stored = 0;
  }
}

void Shadows::deliver(uint64_t address, uint32_t size, int warp) {
  uint32_t count;
  Shadow* shadow = of(address, size, &count);
  for (; count--; ++shadow) {
    shadow->writers = 1u << warp;
    shadow->write_epoch = epochs_->now;
    shadow->stored = 0;
  }
}

}  // namespace ptx
