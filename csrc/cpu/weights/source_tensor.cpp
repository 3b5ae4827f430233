#include "cpu/weights/source_tensor.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "core/failure.h"

namespace pearl {
namespace {

constexpr int64_t kRowsAhead = 16;  // that are read of a file at once

uint16_t bf16_of(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void convert(SourceTensor::Type type, const char* row, int64_t k, uint16_t* out) {
  if (type == SourceTensor::Type::kBfloat16) {
    std::memcpy(out, row, k * sizeof *out);
    return;
  }
  for (int64_t i = 0; i < k; ++i) out[i] = bf16_of(element_of(type, row, i));
}

void convert(SourceTensor::Type type, const char* row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) out[i] = element_of(type, row, i);
}

// The values of a row of codes.
void dequantize(const CodedRows& row, const GroupForm& form, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) {
    const int64_t group = i / form.group;
    const int code = form.bits == 8 ? static_cast<int8_t>(row.codes[i]) : row.codes[i];
    out[i] = float_of_half(row.scales[group]) * static_cast<float>(code);
    if (row.minimums) out[i] += float_of_half(row.minimums[group]);
  }
}

[[noreturn]] void refuse(const SourceTensor& tensor, const std::string& why) {
  throw Failure(FailureKind::kCheckpoint, "tensor '" + tensor.name + "' in " + tensor.path + why);
}

// Bytes [begin, begin + size) of a tensor that lies in a file.
void read_file(const SourceTensor& tensor, int64_t begin, int64_t size, char* out) {
  for (int64_t done = 0; done < size;) {
    const ssize_t got = pread(tensor.descriptor, out + done, size - done, tensor.offset + begin + done);
    if (got == 0) refuse(tensor, " was cut while it was read: load it again once nothing writes to it");
    if (got < 0 && errno != EINTR) refuse(tensor, std::string(" cannot be read: ") + std::strerror(errno));
    if (got > 0) done += got;
  }
}

// Where row `row` of a tensor lies in its file.
int64_t place_of(const SourceTensor& tensor, int64_t row) {
  const int64_t size = tensor.head_rows;
  if (size == 1) return row;
  const int64_t within = row % size, half = size / 2;
  return row - within + 2 * (within % half) + within / half;
}

void check_scales(const SourceTensor& tensor, int64_t row, bool usable) {
  if (usable) return;
  throw Failure(FailureKind::kCheckpoint,
                tensor.path + ": tensor '" + tensor.name +
                    "' has a scale that is NaN or infinite, or beyond fp16, in row " + std::to_string(row) +
                    ": the file is damaged: fetch it again");
}

bool same(const std::optional<GroupForm>& a, const std::optional<GroupForm>& b) {
  if (!a || !b) return !a && !b;
  return a->bits == b->bits && a->group == b->group && a->has_minimums == b->has_minimums;
}

}  // namespace

uint16_t half_of(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x38800000) {  // a multiple of 2^-24, the last bit of 0.5
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000));
  }
  magnitude += 0xC8000FFF + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | magnitude >> 13);
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
}

void check_memory(const SourceTensor& tensor) {
  if (tensor.form || tensor.make) return;                        // checked where it came in
  if (tensor.data == nullptr && tensor.descriptor >= 0) return;  // as it is read
  double wanted = static_cast<double>(size_of(tensor.type));
  for (const int64_t n : tensor.shape) wanted *= static_cast<double>(n);
  if (static_cast<double>(tensor.num_bytes) != wanted) {
    throw std::invalid_argument("tensor '" + tensor.name + "' has " + std::to_string(tensor.num_bytes) +
                                " bytes, which are not those of shape " + text_of(tensor.shape));
  }
}

std::shared_ptr<const SourceTensor> present(const SourceTensor& tensor) {
  if (!tensor.make) return {std::shared_ptr<const void>(), &tensor};  // the caller keeps it
  std::shared_ptr<const SourceTensor> made = tensor.make();
  if (made->make || made->shape != tensor.shape || !same(made->form, tensor.form)) {
    throw std::invalid_argument("tensor '" + tensor.name + "' is not of the shape and form that were said");
  }
  check_memory(*made);
  return made;
}

const char* RowReader::file_rows(const SourceTensor& tensor, int64_t first, int64_t count,
                                 int64_t row_bytes) {
  ahead_of_ = nullptr;
  const int64_t size = count * row_bytes;
  if (static_cast<int64_t>(buffer_.size()) < size) buffer_.resize(size);
  if (tensor.head_rows == 1) {
    read_file(tensor, first * row_bytes, size, buffer_.data());
  } else {
    for (int64_t i = 0; i < count; ++i) {
      read_file(tensor, place_of(tensor, first + i) * row_bytes, row_bytes, buffer_.data() + i * row_bytes);
    }
  }
  return buffer_.data();
}

const char* RowReader::file_row(const SourceTensor& tensor, int64_t row, int64_t row_bytes) {
  if (ahead_of_ != &tensor || row < ahead_first_ || row >= ahead_end_) {
    const int64_t end = std::min(tensor.shape[0], row + kRowsAhead);
    file_rows(tensor, row, end - row, row_bytes);
    ahead_of_ = &tensor;
    ahead_first_ = row;
    ahead_end_ = end;
  }
  return buffer_.data() + (row - ahead_first_) * row_bytes;
}

// A row of blocks into codes_, scales_ and minimums_.
void RowReader::decode(const SourceTensor& tensor, int64_t row, int64_t k) {
  const BlockType& type = *tensor.blocks;
  const int64_t num_blocks = k / type.values, num_groups = k / type.form.group;
  const char* raw = file_row(tensor, row, num_blocks * type.bytes);
  codes_.resize(k);
  scales_.resize(num_groups);
  minimums_.resize(num_groups);
  type.decode(reinterpret_cast<const uint8_t*>(raw), num_blocks, codes_.data(), scales_.data(),
              minimums_.data());
}

CodedRows RowReader::codes(const SourceTensor& tensor, int64_t row, int64_t k) {
  const int64_t num_groups = (k + tensor.form->group - 1) / tensor.form->group;
  if (tensor.blocks == nullptr) {
    const CodedRows& all = tensor.groups;
    return {all.codes + row * k, all.scales + row * num_groups,
            all.minimums ? all.minimums + row * num_groups : nullptr};
  }
  decode(tensor, row, k);
  half_scales_.resize(num_groups);
  half_minimums_.resize(num_groups);
  const auto middle = static_cast<float>(-tensor.blocks->middle);
  const bool has_minimums = tensor.form->has_minimums;
  constexpr uint16_t kNoNumber = 0x7C00;
  bool usable = true;
  for (int64_t g = 0; g < num_groups; ++g) {
    half_scales_[g] = half_of(scales_[g]);
    usable = usable && (half_scales_[g] & kNoNumber) != kNoNumber;
    if (!has_minimums) continue;
    half_minimums_[g] = half_of(tensor.blocks->middle ? scales_[g] * middle : minimums_[g]);
    usable = usable && (half_minimums_[g] & kNoNumber) != kNoNumber;
  }
  check_scales(tensor, row, usable);
  return {codes_.data(), half_scales_.data(), has_minimums ? half_minimums_.data() : nullptr};
}

// A row of codes, or of blocks without a form: the values that llama.cpp computes of them.
void RowReader::read_values(const SourceTensor& tensor, int64_t row, int64_t k, float* out) {
  if (tensor.form) return dequantize(codes(tensor, row, k), *tensor.form, k, out);
  decode(tensor, row, k);
  const BlockType& type = *tensor.blocks;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t group = i / type.form.group;
    const int code = type.form.bits == 8 ? static_cast<int8_t>(codes_[i]) : codes_[i];
    out[i] = static_cast<float>(code - type.middle) * scales_[group];
    if (type.has_minimums) out[i] += minimums_[group];
  }
  bool usable = true;
  for (int64_t g = 0; g < k / type.form.group; ++g) {
    usable = usable && std::isfinite(scales_[g]) && (!type.has_minimums || std::isfinite(minimums_[g]));
  }
  check_scales(tensor, row, usable);
}

void RowReader::read(const SourceTensor& tensor, int64_t first, int64_t count, int64_t k, DType dtype,
                     void* out, int64_t stride) {
  const auto store = [&](SourceTensor::Type type, const char* row, int64_t i) {
    if (dtype == DType::kBfloat16) {
      convert(type, row, k, static_cast<uint16_t*>(out) + i * stride);
    } else {
      convert(type, row, k, static_cast<float*>(out) + i * stride);
    }
  };
  if (tensor.form || tensor.blocks) {
    values_.resize(k);
    for (int64_t i = 0; i < count; ++i) {
      read_values(tensor, first + i, k, values_.data());
      store(SourceTensor::Type::kFloat32, reinterpret_cast<const char*>(values_.data()), i);
    }
    return;
  }
  const int64_t row_bytes = k * size_of(tensor.type);
  const char* rows;
  if (tensor.data != nullptr) {
    rows = static_cast<const char*>(tensor.data) + first * row_bytes;
  } else {
    const bool as_it_is = tensor.head_rows == 1 && stride == k &&
                          tensor.type == (dtype == DType::kBfloat16 ? SourceTensor::Type::kBfloat16
                                                                    : SourceTensor::Type::kFloat32);
    if (as_it_is) {
      read_file(tensor, first * row_bytes, count * row_bytes, static_cast<char*>(out));
      return;
    }
    rows = file_rows(tensor, first, count, row_bytes);
  }
  for (int64_t i = 0; i < count; ++i) store(tensor.type, rows + i * row_bytes, i);
}

}  // namespace pearl
