// A tensor of a checkpoint: in the caller's memory, in a file, or made when its turn comes; and its rows in
// the dtype that is wanted, or as codes. A file is read, never mapped: one that was cut meanwhile is an
// error, not a signal.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/weights/gguf_blocks.h"

namespace pearl {

constexpr int64_t size_of(DType dtype) { return dtype == DType::kBfloat16 ? 2 : 4; }

// Rows of codes in groups that share a scale: pearl_rt/reference/groups.py has the definition. One row, or
// all of a tensor.
struct CodedRows {
  const uint8_t* codes = nullptr;      // [n, k]: int8 of 8 bits, 0..15 of 4
  const uint16_t* scales = nullptr;    // fp16 [n, ceil(k / group)]
  const uint16_t* minimums = nullptr;  // as scales, or null
};

struct SourceTensor {
  enum class Type { kFloat32, kBfloat16, kFloat16 };
  Type type;
  std::vector<int64_t> shape;
  const void* data = nullptr;  // owned by the caller; null: it lies in a file
  size_t num_bytes = 0;        // of data
  int descriptor = -1;         // of a file that stays open
  int64_t offset = 0;          // bytes into it
  std::string name, path;      // for errors

  // Of its codes. None: it has elements, or blocks that are read as their values.
  std::optional<GroupForm> form = {};
  CodedRows groups = {};              // instead of data
  const BlockType* blocks = nullptr;  // what lies in the file instead of elements
  // In the file, the two halves of so many consecutive rows alternate, as llama.cpp's converter leaves the
  // heads of q and k; 1: rows lie in order.
  int64_t head_rows = 1;
  // Gives the tensor itself, of this shape and form, which is kept no longer than it is used; then there is
  // nothing else.
  std::function<std::shared_ptr<const SourceTensor>()> make = {};
};

constexpr int64_t size_of(SourceTensor::Type type) { return type == SourceTensor::Type::kFloat32 ? 4 : 2; }

inline float float_of_bf16(uint16_t x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }

// Round to nearest even; infinity beyond fp16.
uint16_t half_of(float x);

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

std::string text_of(const std::vector<int64_t>& shape);

// Throws std::invalid_argument for elements in memory that are more or fewer bytes than the shape says.
void check_memory(const SourceTensor& tensor);

// The tensor, made if it is one that is made: it lives as long as the result. Throws what its maker throws,
// and std::invalid_argument if that gives another shape or form than was said, or memory of another size.
std::shared_ptr<const SourceTensor> present(const SourceTensor& tensor);

// Reads rows of tensors that are present; what it reads of a file lies in a buffer that is used again.
class RowReader {
 public:
  // Rows [first, first + count) of a tensor [*, k] as k elements of `dtype` each, rounded to nearest even;
  // row i at out + i * stride elements; codes as their values. Throws Failure(kCheckpoint) if the file ends
  // before, cannot be read, or has a scale that is no number.
  void read(const SourceTensor& tensor, int64_t first, int64_t count, int64_t k, DType dtype, void* out,
            int64_t stride);

  // A row of a tensor that has a form, until the next call. Throws as read(). From a file some rows are read
  // at a time: `tensor` stays where it is meanwhile.
  CodedRows codes(const SourceTensor& tensor, int64_t row, int64_t k);

 private:
  const char* file_rows(const SourceTensor& tensor, int64_t first, int64_t count, int64_t row_bytes);
  const char* file_row(const SourceTensor& tensor, int64_t row, int64_t row_bytes);
  void decode(const SourceTensor& tensor, int64_t row, int64_t k);
  void read_values(const SourceTensor& tensor, int64_t row, int64_t k, float* out);

  std::vector<char> buffer_;
  const SourceTensor* ahead_of_ = nullptr;  // whose rows [ahead_first_, ahead_end_) buffer_ holds
  int64_t ahead_first_ = 0, ahead_end_ = 0;
  // A row of blocks, decoded.
  std::vector<uint8_t> codes_;
  std::vector<float> scales_, minimums_, values_;
  std::vector<uint16_t> half_scales_, half_minimums_;
};

}  // namespace pearl
