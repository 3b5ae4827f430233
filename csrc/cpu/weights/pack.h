// Weight matrices in the order in which the kernels read them, made from Hugging Face's row-major tensors.
// Knows nothing of layers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/weights/source_tensor.h"

namespace pearl {

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A packed matrix [n, k] inside a larger buffer: column blocks of 16 output features, each contiguous:
// bf16 [n / 16][k / 2][16][2], fp32 [n / 16][k][16], codes [n / 16][k / 64] records of GroupForm; zeros where
// n or k is padded.
struct PackedMatrix {
  int n = 0;                                                    // output features that exist
  int k = 0;                                                    // inputs, padded to kDepthAlign or a record
  int inputs = 0;                                               // k before it was padded
  int num_blocks = 0;                                           // ceil(n / 16)
  int64_t offset = 0;                                           // bytes from the start of the buffer
  std::optional<GroupForm> form = {};                           // none: elements
  const void* buffer = nullptr;                                 // that it lies in, once that is there
  int64_t block_stride() const { return int64_t{k} * kLanes; }  // elements of a block of elements
  int64_t block_bytes(DType dtype) const {
    return form ? k / kRecordDepth * form->record_bytes() : block_stride() * size_of(dtype);
  }
  int64_t bytes(DType dtype) const { return num_blocks * block_bytes(dtype); }
};

PackedMatrix packed_shape(int64_t n, int64_t k, const std::optional<GroupForm>& form);

// Where output feature i of a packed matrix comes from: a row of a tensor [*, k], or nowhere (zeros).
struct SourceRow {
  const SourceTensor* tensor = nullptr;
  int64_t row = 0;
  int bits = 0;  // 8 or 4: what is wider is rounded to so many; 0: stays as it is
};

// Packs blocks [first, last) of elements or codes: rows has 16 * num_blocks entries; source_k is the unpadded
// k. Blocks are independent. Throws Failure(kCheckpoint) for weights that have no code.
void pack_blocks(const PackedMatrix& matrix, const std::vector<SourceRow>& rows, int64_t source_k,
                 DType dtype, int first, int last, void* buffer);

// One row of a packed matrix, back as fp32: out[source_k].
void unpack_row(const PackedMatrix& matrix, DType dtype, const void* buffer, int64_t row, int source_k,
                float* out);

// body(first, last) over [0, count) in contiguous shares, on as many threads as the process has CPUs. Throws
// what body throws, once all shares have ended; Failure(kResource) if a thread cannot be had.
void in_parallel(int count, const std::function<void(int, int)>& body);

}  // namespace pearl
