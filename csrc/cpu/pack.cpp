#include "cpu/pack.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "cpu/core_set.h"

namespace pearl {
namespace {

float float_of_half(uint16_t half) {
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

uint16_t bf16_of(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float float_of_bf16(uint16_t x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }

// A file's header may leave its tensors at any address.
template <class T>
T load(const SourceTensor& tensor, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(tensor.data) + index * sizeof(T), sizeof value);
  return value;
}

// Row `row` of a tensor [*, k] as elements of the packed dtype.
void read_row(const SourceTensor& tensor, int64_t row, int64_t k, uint16_t* out) {
  if (tensor.type == SourceTensor::Type::kBfloat16) {
    std::memcpy(out, static_cast<const char*>(tensor.data) + row * k * sizeof *out, k * sizeof *out);
    return;
  }
  for (int64_t i = 0; i < k; ++i) out[i] = bf16_of(element_of(tensor, row * k + i));
}

void read_row(const SourceTensor& tensor, int64_t row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) out[i] = element_of(tensor, row * k + i);
}

template <class T>
void pack_block(const PackedMatrix& matrix, const SourceRow* rows, int64_t source_k, T* scratch,
                uint32_t* out) {
  for (int c = 0; c < kLanes; ++c) {
    T* row = scratch + int64_t{c} * matrix.k;
    std::fill(row, row + matrix.k, T{});
    if (rows[c].tensor) read_row(*rows[c].tensor, rows[c].row, source_k, row);
  }
  const int64_t words = matrix.k * sizeof(T) / sizeof(uint32_t);  // of a row
  const char* bytes = reinterpret_cast<const char*>(scratch);
  for (int64_t i = 0; i < words; ++i) {
    for (int c = 0; c < kLanes; ++c) {
      std::memcpy(out + i * kLanes + c, bytes + (c * words + i) * sizeof(uint32_t), sizeof(uint32_t));
    }
  }
}

}  // namespace

float element_of(const SourceTensor& tensor, int64_t index) {
  switch (tensor.type) {
    case SourceTensor::Type::kFloat32:
      return load<float>(tensor, index);
    case SourceTensor::Type::kBfloat16:
      return float_of_bf16(load<uint16_t>(tensor, index));
    default:
      return float_of_half(load<uint16_t>(tensor, index));
  }
}

void convert_row(const SourceTensor& tensor, int64_t row, int64_t k, DType dtype, void* out) {
  if (dtype == DType::kBfloat16) {
    read_row(tensor, row, k, static_cast<uint16_t*>(out));
  } else {
    read_row(tensor, row, k, static_cast<float*>(out));
  }
}

PackedMatrix packed_shape(int64_t n, int64_t k) {
  PackedMatrix matrix;
  matrix.n = static_cast<int>(n);
  matrix.k = static_cast<int>(round_up(k, kDepthAlign));
  matrix.num_blocks = static_cast<int>(round_up(n, kLanes) / kLanes);
  return matrix;
}

void pack_blocks(const PackedMatrix& matrix, const std::vector<SourceRow>& rows, int64_t source_k,
                 DType dtype, int first, int last, void* buffer) {
  std::vector<float> scratch(int64_t{matrix.k} * kLanes);
  char* base = static_cast<char*>(buffer) + matrix.offset;
  for (int block = first; block < last; ++block) {
    auto* out = reinterpret_cast<uint32_t*>(base + block * matrix.block_stride() * size_of(dtype));
    const SourceRow* sources = rows.data() + int64_t{block} * kLanes;
    if (dtype == DType::kBfloat16) {
      pack_block(matrix, sources, source_k, reinterpret_cast<uint16_t*>(scratch.data()), out);
    } else {
      pack_block(matrix, sources, source_k, scratch.data(), out);
    }
  }
}

void unpack_row(const PackedMatrix& matrix, DType dtype, const void* buffer, int64_t row, int source_k,
                float* out) {
  const char* base = static_cast<const char*>(buffer) + matrix.offset;
  const int64_t first = row / kLanes * matrix.block_stride();
  const int64_t column = row % kLanes;
  if (dtype == DType::kFloat32) {
    const float* block = reinterpret_cast<const float*>(base) + first;
    for (int64_t i = 0; i < source_k; ++i) out[i] = block[i * kLanes + column];
    return;
  }
  const uint16_t* block = reinterpret_cast<const uint16_t*>(base) + first;
  for (int64_t i = 0; i < source_k; ++i) out[i] = float_of_bf16(block[(i / 2 * kLanes + column) * 2 + i % 2]);
}

void in_parallel(int count, const std::function<void(int, int)>& body) {
  const int threads = std::max(1, std::min<int>(count, static_cast<int>(affinity_cpus().size())));
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) {
    pool.emplace_back(body, int64_t{count} * t / threads, int64_t{count} * (t + 1) / threads);
  }
  body(0, count / threads);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace pearl
