#include "cpu/weights/pack.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "core/thread.h"
#include "cpu/machine/core_set.h"
#include "cpu/weights/pack_grouped.h"

namespace pearl {
namespace {

template <class T>
void pack_block(const PackedMatrix& matrix, const SourceRow* rows, int64_t source_k, DType dtype, T* scratch,
                RowReader* reader, uint32_t* out) {
  std::fill(scratch, scratch + int64_t{kLanes} * matrix.k, T{});
  for (int c = 0, end; c < kLanes; c = end) {  // rows that lie together are read together
    end = c + 1;
    if (rows[c].tensor == nullptr) continue;
    while (end < kLanes && rows[end].tensor == rows[c].tensor && rows[end].row == rows[c].row + end - c)
      ++end;
    reader->read(*rows[c].tensor, rows[c].row, end - c, source_k, dtype, scratch + int64_t{c} * matrix.k,
                 matrix.k);
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

PackedMatrix packed_shape(int64_t n, int64_t k, const std::optional<GroupForm>& form) {
  PackedMatrix matrix;
  matrix.form = form;
  matrix.n = static_cast<int>(n);
  matrix.k = static_cast<int>(round_up(k, form ? kRecordDepth : kDepthAlign));
  matrix.inputs = static_cast<int>(k);
  matrix.num_blocks = static_cast<int>(round_up(n, kLanes) / kLanes);
  return matrix;
}

void pack_blocks(const PackedMatrix& matrix, const std::vector<SourceRow>& rows, int64_t source_k,
                 DType dtype, int first, int last, void* buffer) {
  if (matrix.form) {
    pack_grouped_blocks(matrix, rows.data(), source_k, first, last, buffer);
    return;
  }
  std::vector<float> scratch(int64_t{matrix.k} * kLanes);
  RowReader reader;
  char* base = static_cast<char*>(buffer) + matrix.offset;
  for (int block = first; block < last; ++block) {
    auto* out = reinterpret_cast<uint32_t*>(base + block * matrix.block_stride() * size_of(dtype));
    const SourceRow* sources = rows.data() + int64_t{block} * kLanes;
    if (dtype == DType::kBfloat16) {
      pack_block(matrix, sources, source_k, dtype, reinterpret_cast<uint16_t*>(scratch.data()), &reader, out);
    } else {
      pack_block(matrix, sources, source_k, dtype, scratch.data(), &reader, out);
    }
  }
}

void unpack_row(const PackedMatrix& matrix, DType dtype, const void* buffer, int64_t row, int source_k,
                float* out) {
  if (matrix.form) {
    unpack_grouped_row(matrix, buffer, row, source_k, out);
    return;
  }
  const char* base = static_cast<const char*>(buffer) + matrix.offset;
  const int64_t first = row / kLanes * matrix.block_stride();
  const int64_t column = row % kLanes;
  if (dtype == DType::kFloat32) {
    const float* block = reinterpret_cast<const float*>(base) + first;
    for (int64_t i = 0; i < source_k; ++i) out[i] = block[i * kLanes + column];
    return;
  }
  const uint16_t* block = reinterpret_cast<const uint16_t*>(base) + first;
  for (int64_t i = 0; i < source_k; ++i)
    out[i] = element_of(SourceTensor::Type::kBfloat16, block, (i / 2 * kLanes + column) * 2 + i % 2);
}

void in_parallel(int count, const std::function<void(int, int)>& body) {
  const int threads = std::max(1, std::min<int>(count, static_cast<int>(affinity_cpus().size())));
  std::vector<std::exception_ptr> thrown(threads);
  const auto take_share = [&](int t) {
    try {
      body(int64_t{count} * t / threads, int64_t{count} * (t + 1) / threads);
    } catch (...) {
      thrown[t] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> pool;  // each is joined where it is dropped
    for (int t = 1; t < threads; ++t) {
      pool.push_back(started_thread("packing weights", [&take_share, t] { take_share(t); }));
    }
    take_share(0);
  }
  for (const std::exception_ptr& each : thrown) {
    if (each) std::rethrow_exception(each);
  }
}

}  // namespace pearl
