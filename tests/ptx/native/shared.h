// The shared memory of one program, and what its checks remember of each piece of it.
// Time is counted in epochs: a barrier of all warps, and the start of a program, begin a new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ptx/native/instruction.h"

namespace ptx {

constexpr uint64_t kSharedBase = 1024;  // the address of its first byte

class Shared {
 public:
  // granule: bytes that are checked as one; no access is smaller.
  Shared(uint32_t num_bytes, uint32_t granule);

  // Poison everywhere, and nothing remembered: promises of the program before are forgotten first.
  void start_program();
  void forget(uint64_t address, uint32_t size);
  void next_epoch() { ++epoch_; }
  uint32_t epoch() const { return epoch_; }

  // Where an access of this size lies, after its bounds and alignment are checked. Throws Fault.
  std::byte* at(uint64_t address, uint32_t size) const;

  void read(uint64_t address, uint32_t size, int warp);
  // By wgmma, which reads through the asynchronous proxy. fences: of all warps.
  void read_async(uint64_t address, uint32_t size, int warp, const std::vector<uint64_t>& fences,
                  uint32_t fence_epoch);
  // What wgmma read and goes on reading until it is waited for: since is the epoch when it began.
  void read_until_now(uint64_t address, uint32_t size, int warp, uint32_t since);
  // Before the bytes are stored: the same ones may be stored by several warps. clock: of this store.
  void write(uint64_t address, uint32_t size, const std::byte* bytes, int warp, uint64_t clock);
  // cp.async is issued: nothing may touch the target until it is delivered.
  void promise(uint64_t address, uint32_t size, int warp);
  void deliver(uint64_t address, uint32_t size, int warp);

 private:
  struct Shadow {
    uint32_t write_epoch, writers;  // a mask of warps
    uint32_t read_epoch, readers;
    uint64_t stored;  // the clock of the last plain store; 0: another kind of write
  };

  Shadow* shadows_of(uint64_t address, uint32_t size, uint32_t* count);
  [[noreturn]] static void race(const char* kind, uint64_t address, uint32_t size, uint32_t others);

  uint32_t num_bytes_, shift_;
  uint32_t epoch_ = 0, first_epoch_ = 0;
  uint64_t written_ = 0;  // bytes from the first to the last that was stored
  mutable std::vector<std::byte> bytes_;
  std::vector<Shadow> shadows_;
};

}  // namespace ptx
