#include "cpu/weights/source_tensor.h"

#include <errno.h>
#include <unistd.h>

#include <cstring>

#include "core/failure.h"

namespace pearl {
namespace {

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
void dequantize(const SourceGroups& groups, int64_t row, int64_t k, float* out) {
  const int64_t num_groups = (k + groups.group - 1) / groups.group;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t at = row * k + i, group = row * num_groups + i / groups.group;
    const int code = groups.bits == 8 ? static_cast<const int8_t*>(groups.codes)[at]
                                      : static_cast<const uint8_t*>(groups.codes)[at];
    out[i] = float_of_half(groups.scales[group]) * static_cast<float>(code);
    if (groups.minimums) out[i] += float_of_half(groups.minimums[group]);
  }
}

// Bytes [begin, begin + size) of a tensor that lies in a file.
void read_file(const SourceTensor& tensor, int64_t begin, int64_t size, char* out) {
  const auto refuse = [&](const std::string& why) {
    throw Failure(FailureKind::kCheckpoint, "tensor '" + tensor.name + "' in " + tensor.path + why);
  };
  for (int64_t done = 0; done < size;) {
    const ssize_t got = pread(tensor.descriptor, out + done, size - done, tensor.offset + begin + done);
    if (got == 0) refuse(" was cut while it was read: load it again once nothing writes to it");
    if (got < 0 && errno != EINTR) refuse(std::string(" cannot be read: ") + std::strerror(errno));
    if (got > 0) done += got;
  }
}

}  // namespace

void RowReader::read(const SourceTensor& tensor, int64_t first, int64_t count, int64_t k, DType dtype,
                     void* out, int64_t stride) {
  if (tensor.groups) {
    std::vector<float> values(k);
    for (int64_t i = 0; i < count; ++i) {
      dequantize(*tensor.groups, first + i, k, values.data());
      const char* row = reinterpret_cast<const char*>(values.data());
      if (dtype == DType::kBfloat16) {
        convert(SourceTensor::Type::kFloat32, row, k, static_cast<uint16_t*>(out) + i * stride);
      } else {
        convert(SourceTensor::Type::kFloat32, row, k, static_cast<float*>(out) + i * stride);
      }
    }
    return;
  }
  const int64_t row_bytes = k * size_of(tensor.type);
  const int64_t begin = first * row_bytes, size = count * row_bytes;
  const char* rows;
  if (tensor.data != nullptr) {
    rows = static_cast<const char*>(tensor.data) + begin;
  } else {
    const bool as_it_is =
        stride == k && tensor.type == (dtype == DType::kBfloat16 ? SourceTensor::Type::kBfloat16
                                                                 : SourceTensor::Type::kFloat32);
    if (as_it_is) {
      read_file(tensor, begin, size, static_cast<char*>(out));
      return;
    }
    if (static_cast<int64_t>(buffer_.size()) < size) buffer_.resize(size);
    read_file(tensor, begin, size, buffer_.data());
    rows = buffer_.data();
  }
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == DType::kBfloat16) {
      convert(tensor.type, rows + i * row_bytes, k, static_cast<uint16_t*>(out) + i * stride);
    } else {
      convert(tensor.type, rows + i * row_bytes, k, static_cast<float*>(out) + i * stride);
    }
  }
}

}  // namespace pearl
