// Zeroed memory in huge pages, owned by one object. Knows nothing of what is kept in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>

namespace pearl {

// Not enough memory: says how much was wanted, for what, and how much there is. Python sees MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// Bytes that can still be had without swapping: the kernel's estimate, or what the control group leaves of
// its limit, cached files being free; or what the process has left of its address space (ulimit -v). The
// largest number where none of them is known.
int64_t available_bytes(const std::string& meminfo = "/proc/meminfo",
                        const std::string& group = "/sys/fs/cgroup");

// Throws OutOfMemory, which names `purpose`, if the machine cannot hold so many bytes: Linux hands out more
// than it has, and kills later. A double, which no product of sizes overflows.
void check_memory(double bytes, const std::string& purpose);

// The size of the last-level cache; 0 where it is not known.
int64_t last_level_cache_bytes();

// `bytes` of zeroed memory, aligned to 2 MiB and backed by huge pages where the kernel has them. Throws
// OutOfMemory, which names `purpose`, if the machine cannot hold it.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  HugeBuffer(int64_t bytes, const std::string& purpose);
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;
  ~HugeBuffer();

  template <class T>
  T* as(int64_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  int64_t mapped_bytes_ = 0;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace pearl
