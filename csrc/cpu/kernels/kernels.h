// What a forward pass asks of an instruction set: one table of functions per (instruction set, dtype).
// A row's result never depends on the other rows of a call: each output element has one accumulator that runs
// over K in ascending order, whatever the number of rows, columns and threads.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/kernels/grouped/form.h"

namespace pearl {

// The dtype of weights, activations before a matmul, and KV cache. Sums, norms, rope, softmax and the
// residual stream are fp32 in both.
enum class DType { kBfloat16, kFloat32 };

constexpr int kLanes = 16;       // columns of a packed block; positions of keys in one
constexpr int kPanel = 4;        // column blocks between two epilogues
constexpr int kTileRows = 16;    // rows that AMX always reads: activation buffers have a multiple of it
constexpr int kDepthAlign = 32;  // K of a packed matrix and row length of an activation buffer

enum class Epilogue {
  kStore,    // out[m, n] = sum                                 fp32
  kAdd,      // out[m, n] += sum                                fp32
  kSiluMul,  // out[m, j] = silu(even block) * odd block        element
};

// out[m, n] = epilogue(sum_k x[m, k] * w[n, k]); "element" is bf16 or fp32, as the table's dtype.
struct MatmulArgs {
  const void* x;     // [rows, k], row-major
  int64_t x_stride;  // elements from row to row
  int rows;          // >= 1
  const void* w;     // bf16: [num_blocks][k / 2][16 columns][2]; fp32: [num_blocks][k][16 columns]
  int64_t w_stride;  // elements from block to block
  int k;             // bf16: even
  int num_blocks;    // kSiluMul: even
  int num_cols;      // kStore: columns that exist; the rest of the last block is dropped
  Epilogue epilogue;
  const float* bias;       // [num_blocks][16], or null: added to each sum
  void* out;               // column 0 of the first block
  int64_t out_stride;      // elements from row to row
  float* const* out_rows;  // kStore: where each row goes, instead of out; null elsewhere
  int64_t out_column;      // added to each of out_rows
  const void* next_w;      // what this thread reads after w, to be fetched early; or null
  int64_t next_w_stride;
  // w comes from memory: fetch it a panel ahead and in memory order, so that memory sees a single stream and
  // works while there is arithmetic to do. From a cache a short distance ahead is better if rows are few.
  bool from_memory;
  // matmul_any_k with kStore and no bias, num_cols a multiple of 16: sums go on from what out holds, so that
  // calls over consecutive parts of K have the bits of one call.
  bool continues;
};

// A matmul of rows of codes with a matrix of codes. Each output element has one sum, to which its groups are
// added in ascending order.
struct GroupedMatmulArgs {
  GroupForm form;
  const char* x;     // [out.rows] rows as quantize_row writes them, 4-byte aligned; as many as the next
                     // multiple of kTileRows may be read if there are more than 8
  int64_t x_stride;  // bytes from row to row
  const char* w;     // [out.num_blocks][out.k / 64] records
  // Epilogue and outputs, with rows, k and blocks; x, w and `continues` are not read. next_w is fetched when
  // the end of w is near.
  MatmulArgs out;
};

// p[m, :] = softmax of (scores[m, :visible[m]] * scale) before its division; zeros from visible[m] to
// num_positions
struct SoftmaxArgs {
  const float* scores;  // [rows, stride], num_positions of each row used
  void*
      p;  // [rows, stride] of query_dtype: exp(scale * (score - max)), rounded; scores itself if that is fp32
  int64_t stride;  // a multiple of 16
  int rows;
  const int* visible;  // [rows], 1..num_positions
  int num_positions;   // rounded up to 16 when p is written
  float scale;
  float* inverse_sum;  // [rows]: 1 / sum of the rounded p
};

// One table: everything a step computes.
struct Kernels {
  const char* isa;  // its name
  DType dtype;
  // What attention keeps queries and probabilities in, which are rounded to dtype: dtype; or fp32, where bf16
  // would be widened for each product anyway.
  DType query_dtype;

  // Each thread, before its matmuls of a run (AMX: tile configuration); may be null.
  void (*prepare_thread)();
  void (*matmul)(const MatmulArgs&);
  // The same without tiles, and x of query_dtype: for attention, whose K is any even number.
  void (*matmul_any_k)(const MatmulArgs&);
  // The epilogue of a matmul on raw sums: sums[m][16 kPanel] for rows from first_row on, columns from
  // first_block on.
  void (*finish)(const MatmulArgs&, const float* sums, int first_row, int rows, int first_block,
                 int num_blocks);
  void (*softmax)(const SoftmaxArgs&);
  // out[i] = x[i] * rsqrt(mean of x^2 over n + eps) * weight[i]; x and weight are zero from n to round_up(n,
  // 16)
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, void* out);
  // out[i] = x[i] * factor, rounded to the element; i < n, any n
  void (*convert)(const float* x, float factor, int n, void* out);
  // The same, kept in query_dtype.
  void (*convert_query)(const float* x, float factor, int n, void* out);
  // x[n] elements as codes of a row for groups of row.group; zeros up to row.k. A group with NaN or infinity
  // has zeros, and NaN for its scale.
  void (*quantize_row)(const void* x, int n, const GroupedRow& row, char* out);
  void (*grouped_matmul)(const GroupedMatmulArgs&);
  // Reads `lines` cache lines (a multiple of 4) as a matmul does, and fetches as many after them; returns a
  // sum.
  float (*read_panel)(const char* data, int64_t lines);
};

// The table of an instruction set; of the fastest that runs here, for an empty name. Throws
// std::invalid_argument, which says what is available; Failure(kResource) where AMX computes wrong sums.
const Kernels& kernels_of(const std::string& isa, DType dtype);

// Where the tables live, one file each.
const Kernels& portable_kernels(DType dtype);  // kernels_portable.cpp
const Kernels& avx2_kernels(DType dtype);      // kernels_avx2.cpp
const Kernels& avx512_kernels(DType dtype);    // kernels_avx512.cpp
const Kernels& amx_kernels(DType dtype);       // kernels_amx.cpp

}  // namespace pearl
