// Weight matrices in the order in which the kernels read them, made from Hugging Face's row-major tensors.
// Knows nothing of layers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace pearl {

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t size_of(DType dtype) { return dtype == DType::kBfloat16 ? 2 : 4; }

// A tensor of a checkpoint, owned by the caller.
struct SourceTensor {
  enum class Type { kFloat32, kBfloat16, kFloat16 };
  const void* data;
  Type type;
  std::vector<int64_t> shape;
  size_t num_bytes = 0;
};

// Element `index` of a tensor, whatever its type.
float element_of(const SourceTensor& tensor, int64_t index);

// Row `row` of a tensor [*, k] as k elements of `dtype`, rounded to nearest even.
void convert_row(const SourceTensor& tensor, int64_t row, int64_t k, DType dtype, void* out);

// A packed matrix [n, k] inside a larger buffer: column blocks of 16 output features, each contiguous:
// bf16 [n / 16][k / 2][16][2], fp32 [n / 16][k][16]; zeros where n or k is padded.
struct PackedMatrix {
  int n = 0;                                                    // output features that exist
  int k = 0;                                                    // inputs, padded to kDepthAlign
  int num_blocks = 0;                                           // ceil(n / 16)
  int64_t offset = 0;                                           // bytes from the start of the buffer
  int64_t block_stride() const { return int64_t{k} * kLanes; }  // elements
  int64_t bytes(DType dtype) const { return num_blocks * block_stride() * size_of(dtype); }
};

PackedMatrix packed_shape(int64_t n, int64_t k);

// Where output feature i of a packed matrix comes from: a row of a tensor [*, k], or nowhere (zeros).
struct SourceRow {
  const SourceTensor* tensor = nullptr;
  int64_t row = 0;
};

// Packs blocks [first, last): rows has 16 * num_blocks entries; source_k is the unpadded k. Blocks are
// independent.
void pack_blocks(const PackedMatrix& matrix, const std::vector<SourceRow>& rows, int64_t source_k,
                 DType dtype, int first, int last, void* buffer);

// One row of a packed matrix, back as fp32: out[source_k].
void unpack_row(const PackedMatrix& matrix, DType dtype, const void* buffer, int64_t row, int source_k,
                float* out);

// body(first, last) over [0, count) in contiguous shares, on as many threads as the process has CPUs.
void in_parallel(int count, const std::function<void(int, int)>& body);

}  // namespace pearl
