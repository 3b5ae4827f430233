#include "cpu/machine/memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <utility>

namespace pearl {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The first number of a file, or kUnknown.
int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnknown;
}

// The sum of the numbers behind these names, one to a line ("name number ..."), or kUnknown where none
// stands.
int64_t named_in(const std::string& path, std::initializer_list<const char*> names) {
  std::ifstream file(path);
  std::string name, rest;
  int64_t value = 0, sum = 0;
  bool is_known = false;
  while (file >> name >> value) {
    for (const char* wanted : names) {
      if (name != wanted) continue;
      sum += value;
      is_known = true;
    }
    std::getline(file, rest);
  }
  return is_known ? sum : kUnknown;
}

// Of the addresses that the process may have; its first figure in statm is the pages of those it has.
int64_t address_space_left() {
  rlimit limit{};
  const int64_t pages = number_in("/proc/self/statm");
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || pages == kUnknown) {
    return kUnknown;
  }
  const auto most = static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, kUnknown));
  return std::max<int64_t>(most - pages * sysconf(_SC_PAGESIZE), 0);
}

std::string mebibytes(int64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

constexpr double kAlwaysThere = 1 << 20;
constexpr double kMostCounted = 0x1p62;  // bytes; more is said as so many

}  // namespace

int64_t available_bytes(const std::string& meminfo, const std::string& group) {
  const int64_t kibibytes = named_in(meminfo, {"MemAvailable:"});
  const int64_t available =
      std::min(kibibytes == kUnknown ? kUnknown : kibibytes * 1024, address_space_left());
  const int64_t limit = number_in(group + "/memory.max");
  const int64_t used = number_in(group + "/memory.current");
  if (limit == kUnknown || used == kUnknown) return available;
  // What the kernel gives back at once is not used: cached files, and its own caches.
  const int64_t cached =
      named_in(group + "/memory.stat", {"inactive_file", "active_file", "slab_reclaimable"});
  const int64_t held = cached == kUnknown ? used : std::max<int64_t>(used - cached, 0);
  return std::min(available, std::max<int64_t>(limit - held, 0));
}

void check_memory(double bytes, const std::string& purpose) {
  if (bytes <= kAlwaysThere) return;
  const int64_t available = available_bytes();
  if (bytes <= static_cast<double>(available)) return;
  throw OutOfMemory(purpose + " needs " + mebibytes(static_cast<int64_t>(std::min(bytes, kMostCounted))) +
                    ", and " + mebibytes(available) + " are free; ask for less");
}

int64_t last_level_cache_bytes() {
  for (int index = 4; index >= 0;
       --index) {  // sysconf counts every die of a socket; the kernel, what a CPU sees
    const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
    const int64_t kibibytes = number_in(path);
    if (kibibytes != kUnknown) return kibibytes * 1024;
  }
  return 0;
}

HugeBuffer::HugeBuffer(int64_t bytes, const std::string& purpose) : bytes_(bytes) {
  // Linux hands out more than it has, and kills later: ask first.
  const int64_t available = available_bytes();
  const auto refuse = [&] {
    throw OutOfMemory(purpose + " needs " + mebibytes(bytes) + " (" + std::to_string(bytes) +
                      " bytes), and " + mebibytes(available) +
                      " are free; use a smaller model, a shorter max_model_len or bfloat16");
  };
  if (bytes < 0 || bytes > available) refuse();
  mapped_bytes_ = (bytes + 2 * kHugePage - 1) / kHugePage * kHugePage;
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    refuse();
  }
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
  madvise(mapping_, mapped_bytes_, MADV_HUGEPAGE);
#endif
}

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

HugeBuffer::~HugeBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
}

}  // namespace pearl
