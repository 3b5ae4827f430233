// A tensor of a checkpoint, in the caller's memory or in a file, and its rows in the dtype that is wanted.
// A file is read, never mapped: one that was cut meanwhile is an error, not a signal.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace pearl {

constexpr int64_t size_of(DType dtype) { return dtype == DType::kBfloat16 ? 2 : 4; }

struct SourceTensor {
  enum class Type { kFloat32, kBfloat16, kFloat16 };
  Type type;
  std::vector<int64_t> shape;
  const void* data = nullptr;  // owned by the caller; null: it lies in a file
  size_t num_bytes = 0;        // of data
  int descriptor = -1;         // of a file that stays open
  int64_t offset = 0;          // bytes into it
  std::string name, path;      // for errors
};

constexpr int64_t size_of(SourceTensor::Type type) { return type == SourceTensor::Type::kFloat32 ? 4 : 2; }

inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1F;
  const uint32_t mantissa = half & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return __builtin_bit_cast(float, sign | biased << 23 | mantissa << 13);
}

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
  // row i at out + i * stride elements. Throws Failure(kCheckpoint) if the file ends before, or cannot be
  // read.
  void read(const SourceTensor& tensor, int64_t first, int64_t count, int64_t k, DType dtype, void* out,
            int64_t stride);

 private:
  std::vector<char> buffer_;
};

}  // namespace pearl
