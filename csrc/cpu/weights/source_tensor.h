// A tensor of a checkpoint, in the caller's memory or in a file, and its rows in the dtype that is wanted.
// A file is read, never mapped: one that was cut meanwhile is an error, not a signal.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace pearl {

constexpr int64_t size_of(DType dtype) { return dtype == DType::kBfloat16 ? 2 : 4; }

// A tensor [n, k] of codes in groups that share a scale: pearl_rt/reference/groups.py has the definition.
struct SourceGroups {
  int bits;                  // 8 or 4
  int group;                 // 32; or 16, with 8 bits
  const void* codes;         // int8 (8 bits) or uint8 (4 bits) [n, k]
  const uint16_t* scales;    // fp16 [n, ceil(k / group)]
  const uint16_t* minimums;  // as scales, or null
};

struct SourceTensor {
  enum class Type { kFloat32, kBfloat16, kFloat16 };
  Type type;
  std::vector<int64_t> shape;
  const void* data = nullptr;               // owned by the caller; null: it lies in a file
  size_t num_bytes = 0;                     // of data
  int descriptor = -1;                      // of a file that stays open
  int64_t offset = 0;                       // bytes into it
  std::string name, path;                   // for errors
  std::optional<SourceGroups> groups = {};  // instead of data
};

constexpr int64_t size_of(SourceTensor::Type type) { return type == SourceTensor::Type::kFloat32 ? 4 : 2; }

inline float float_of_bf16(uint16_t x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }

template <class T>
T unaligned(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof(T), sizeof(T));
  return value;
}

// Element `index` of a row of `type`, whatever its alignment.
inline float element_of(SourceTensor::Type type, const void* data, int64_t index) {
  switch (type) {
    case SourceTensor::Type::kFloat32:
      return unaligned<float>(data, index);
    case SourceTensor::Type::kBfloat16:
      return float_of_bf16(unaligned<uint16_t>(data, index));
    default:
      return float_of_half(unaligned<uint16_t>(data, index));
  }
}

// Reads rows of tensors; what it reads of a file lies in a buffer that is used again.
class RowReader {
 public:
  // Rows [first, first + count) of a tensor [*, k] as k elements of `dtype` each, rounded to nearest even;
  // row i at out + i * stride elements; codes as their values. Throws Failure(kCheckpoint) if the file ends
  // before, or cannot be read.
  void read(const SourceTensor& tensor, int64_t first, int64_t count, int64_t k, DType dtype, void* out,
            int64_t stride);

 private:
  std::vector<char> buffer_;
};

}  // namespace pearl
