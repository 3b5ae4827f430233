// What the checks of races remember of memory: which warps read and stored each piece of it, and when.
// Time is counted in epochs: a barrier of all warps, and the start of a program, begin a new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ptx/native/instruction.h"

namespace ptx {

struct Epochs {
  uint32_t now = 0;
  uint32_t first = 0;  // of this program
};

class Shadows {
 public:
  // Of so many bytes from base on. granule: bytes that are checked as one; no access is smaller.
  Shadows(const Epochs& epochs, uint64_t base, uint64_t num_bytes, uint32_t granule);

  void read(uint64_t address, uint32_t size, int warp);
  // By wgmma, which reads through the asynchronous proxy. fences: of all warps.
  void read_async(uint64_t address, uint32_t size, int warp, const std::vector<uint64_t>& fences,
                  uint32_t fence_epoch);
  // What wgmma read and goes on reading until it is waited for: since is the epoch when it began.
  void read_until_now(uint64_t address, uint32_t size, int warp, uint32_t since);
  // Before bytes are stored where others lie: several warps may store equal ones. clock: of this store.
  void write(uint64_t address, uint32_t size, const std::byte* place, const std::byte* bytes, int warp,
             uint64_t clock);
  // cp.async is issued: nothing may touch the target until it is delivered.
  void promise(uint64_t address, uint32_t size, int warp);
  void deliver(uint64_t address, uint32_t size, int warp);
  void forget(uint64_t address, uint32_t size);

 private:
  struct Shadow {
    uint32_t write_epoch, writers;  // a mask of warps
    uint32_t read_epoch, readers;
    uint64_t stored;  // the clock of the last plain store; 0: another kind of write
  };

  Shadow* of(uint64_t address, uint32_t size, uint32_t* count);

  const Epochs* epochs_;
  uint64_t base_;
  uint32_t shift_;
  std::vector<Shadow> shadows_;
};

}  // namespace ptx
