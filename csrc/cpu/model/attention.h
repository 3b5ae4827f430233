// Causal attention of a step's rows over the KV cache: rope and KV store first, then scores, softmax and
// values. Knows nothing of projections.
#pragma once

#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/model/kv_cache.h"

namespace pearl {

// Consecutive tokens of one sequence among the rows of a step.
struct Piece {
  const int32_t* block_table;  // of the sequence, as far as its last row here
  int first_row;               // of the step
  int num_rows;
  int64_t start;  // position of the first
};

// One layer of one step; rows are the step's. All pointers are shared by the threads.
struct AttentionStep {
  const LlamaConfig& config;
  const Kernels& kernels;
  const KvCache& cache;
  bool from_memory;    // as a MatmulArgs'
  const void* next_w;  // this thread's part of the projection that follows
  int64_t next_w_stride;
  int layer;
  const Piece* pieces;
  int num_pieces;
  int capacity;      // rows that the buffers hold
  const float* cos;  // [max_model_len, head_dim / 2]
  const float* sin;
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;
  const float* qkv;  // [rows, qkv_stride] fp32: q, k and v of every head, with bias, before norm and rope
  int64_t qkv_stride;
  void* queries;  // [kv heads][capacity x heads per kv head][head_dim] elements: written by rope_and_store
  void* out;      // [rows, out_stride] elements: written by attend
  int64_t out_stride;
};

// What one thread needs for itself, for contexts up to max_model_len.
class AttentionScratch {
 public:
  AttentionScratch(const LlamaConfig& config, DType dtype, int64_t max_model_len);

  int64_t stride() const { return stride_; }  // of scores and probabilities: the longest context, padded
  float* scores() const { return buffer_.as<float>(); }
  void* probabilities() const { return buffer_.as<char>(probabilities_offset_); }
  float* sums() const { return buffer_.as<float>(sums_offset_); }        // [16, value blocks x 16]
  float* head() const { return buffer_.as<float>(head_offset_); }        // [2, head_dim]
  void* elements() const { return buffer_.as<char>(elements_offset_); }  // [2, head_dim] elements

 private:
  int64_t stride_, probabilities_offset_, sums_offset_, head_offset_, elements_offset_;
  HugeBuffer buffer_;
};

// Queries with norm and rope, keys and values into the cache. This thread's share of (piece, KV head, 16
// positions).
void rope_and_store(const AttentionStep& step, const AttentionScratch& scratch, int index, int num_threads);

// softmax(q k^T / sqrt(head_dim)) v over positions <= the row's own, block by block, with the bits of a cache
// in one piece. This thread's share of (piece, KV head,
// up to 16 query rows). Every key and value of the step must have been stored.
void attend(const AttentionStep& step, const AttentionScratch& scratch, int index, int num_threads);

}  // namespace pearl
