// Pinned memory of the host that copies to a device start from: pieces of it, until all are given back at
// once. Knows sizes; not what is copied, nor when a copy has run.
#pragma once

#include <cstddef>

#include "core/failure.h"
#include "cuda/driver/driver_api.h"

namespace pearl {

struct Copy {
  CUdeviceptr to;
  CUdeviceptr from;
  size_t num_bytes;
};

inline CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

class Staging {
 public:
  static constexpr size_t kAlignment = 16;
  // Bytes that n values take.
  template <typename T>
  static size_t bytes(size_t n) {
    return (n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  Staging() = default;
  Staging(char* begin, size_t num_bytes) : begin_(begin), size_(num_bytes) {}

  // Room for n values.
  template <typename T>
  T* take(size_t n) {
    T* const place = reinterpret_cast<T*>(begin_ + used_);
    used_ += bytes<T>(n);
    if (used_ > size_) throw Failure(FailureKind::kRequest, "staging is too small");  // it was counted before
    return place;
  }

  // All pieces are free again: only when no copy will read them.
  void clear() { used_ = 0; }

 private:
  char* begin_ = nullptr;
  size_t size_ = 0;
  size_t used_ = 0;
};

}  // namespace pearl
