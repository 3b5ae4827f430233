// Copies of the fake driver, and the memory that they may touch.
#include "memory.h"

#include <cstdlib>
#include <cstring>

#include "fake_cuda.h"
#include "streams.h"

namespace fake {

Allocation::~Allocation() {
  if (is_ours) std::free(reinterpret_cast<void*>(begin));
}

namespace {

struct CopyWork : Work {
  explicit CopyWork(const Copy& copy) : copy(copy) {
    for (Allocation* allocation : {copy.target, copy.source})
      allocation->num_copies.fetch_add(1, std::memory_order_relaxed);
  }
  void run(Stream& stream) override { copy.run(*stream.context, "cuMemcpyAsync"); }
  void finish() override {
    for (Allocation* allocation : {copy.target, copy.source})
      allocation->num_copies.fetch_sub(1, std::memory_order_relaxed);
  }
  const Copy copy;
};

// The allocation that holds all of the bytes.
Allocation* find(Call& c, uintptr_t begin, size_t num_bytes, const char* what) {
  auto found = c.world.allocations.upper_bound(begin);
  if (found != c.world.allocations.begin()) {
    --found;
    Allocation* const allocation = found->second.get();
    const uintptr_t offset = begin - allocation->begin;
    if (offset <= allocation->num_bytes && num_bytes <= allocation->num_bytes - offset) return allocation;
    if (offset < allocation->num_bytes) {
      c.refuse(kInvalidValue, std::to_string(num_bytes) + " bytes " + what + " byte " +
                                  std::to_string(offset) + " of an allocation of " +
                                  std::to_string(allocation->num_bytes));
    }
  }
  c.refuse(kInvalidValue, std::string("a copy ") + what + " memory that is neither a device's nor pinned");
}

void add(World& world, int device, void* memory, size_t num_bytes, bool is_ours) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  auto& place = world.allocations[begin];
  if (place != nullptr) {
    world.violation("fake_register: this memory is registered already");
    world.freed.push_back(std::move(place));
  }
  place = std::make_unique<Allocation>(device, begin, num_bytes, is_ours);
}

void remove(World& world, const char* name, void* memory) {
  const auto found = world.allocations.find(reinterpret_cast<uintptr_t>(memory));
  if (found == world.allocations.end()) {
    return world.violation(std::string(name) + ": this memory is not registered, or was freed before");
  }
  Allocation& allocation = *found->second;
  if (allocation.num_copies.load(std::memory_order_relaxed) != 0) {
    world.violation(std::string(name) + ": a copy of this memory is still to be done");
  }
  allocation.is_freed.store(true, std::memory_order_relaxed);
  if (allocation.is_ours) std::memset(memory, 0xEE, allocation.num_bytes);
  world.freed.push_back(std::move(found->second));
  world.allocations.erase(found);
}

}  // namespace

void Copy::run(Context& context, const char* call) const {
  if (target->is_freed.load(std::memory_order_relaxed) || source->is_freed.load(std::memory_order_relaxed)) {
    World::get().violation(std::string(call) + ": its memory was freed before it was done");
    return context.raise(kIllegalAddress);
  }
  std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), num_bytes);
}

Copy legal_copy(Call& c, uintptr_t to, uintptr_t from, size_t num_bytes) {
  Allocation* const target = find(c, to, num_bytes, "to");
  Allocation* const source = find(c, from, num_bytes, "from");
  if (to < from + num_bytes && from < to + num_bytes) c.refuse(kInvalidValue, "source and target overlap");
  return {to, from, num_bytes, target, source};
}

}  // namespace fake

using namespace fake;

FAKE_EXPORT void* fake_alloc(int device, size_t num_bytes) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  const size_t rounded = (num_bytes + 255) / 256 * 256;
  void* const memory = std::aligned_alloc(256, rounded == 0 ? 256 : rounded);
  std::memset(memory, 0xEE, rounded);
  add(world, device, memory, num_bytes, true);
  return memory;
}

FAKE_EXPORT void fake_free(void* memory) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  remove(world, "fake_free", memory);
}

FAKE_EXPORT void fake_register(int device, void* memory, size_t num_bytes) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  add(world, device, memory, num_bytes, false);
}

FAKE_EXPORT void fake_unregister(void* memory) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  remove(world, "fake_unregister", memory);
}

FAKE_EXPORT CUresult cuMemcpyAsync(pearl::CUdeviceptr to, pearl::CUdeviceptr from, size_t num_bytes,
                                   pearl::CUstream handle) {
  return call("cuMemcpyAsync", [&](Call& c) {
    Stream& stream = usable_stream(c, handle, true);
    if (num_bytes == 0) return;
    stream.push(std::make_unique<CopyWork>(legal_copy(c, to, from, num_bytes)));
  });
}

FAKE_EXPORT CUresult cuMemGetInfo(size_t* free, size_t* total) {
  return call("cuMemGetInfo", [&](Call& c) {
    c.use(c.current(), false);
    *free = c.world.memory_bytes;
    *total = c.world.memory_bytes + (size_t{1} << 30);
  });
}
