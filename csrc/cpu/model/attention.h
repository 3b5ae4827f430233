// Causal attention of a step's rows over the KV cache, but for rows that see each other: rope and KV store
// first, then scores, softmax and values. Knows nothing of projections.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/model/kv_cache.h"

namespace pearl {

// Consecutive tokens of one sequence among the rows of a step.
struct Piece {
  const int32_t* block_table;  // of the sequence, as far as its last row here
  int first_row;               // of the step
  int num_rows;
  int64_t start;     // position of the first
  int num_open = 0;  // of its last rows: these see all of them
};

// One layer of one step; rows are the step's. All pointers are shared by the threads.
struct AttentionStep {
  const LlamaConfig& config;
  const Kernels& kernels;
  const KvCache& cache;
  bool from_memory;    // as a MatmulArgs'
  const void* next_w;  // what this thread reads of the projection that follows
  int64_t next_w_stride;
  int layer;
  int capacity;      // rows that the buffers hold
  const float* cos;  // [max_model_len, head_dim / 2]
  const float* sin;
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;
  const float* qkv;  // [rows, qkv_stride] fp32: q, k and v of every head, with bias, before norm and rope
  int64_t qkv_stride;
  void* queries;  // [kv heads][capacity x heads per kv head][head_dim] of query_dtype: rope_and_store's
  void* out;      // [rows, out_stride] elements: written by attend
  int64_t out_stride;
};

// What one thread needs for itself, for contexts up to max_model_len.
class AttentionScratch {
 public:
  AttentionScratch(const LlamaConfig& config, DType query_dtype, int64_t max_model_len);

  int64_t stride() const { return stride_; }  // of scores and probabilities: the longest context, padded
  float* scores() const { return buffer_.as<float>(); }
  void* probabilities() const { return buffer_.as<char>(probabilities_offset_); }
  float* sums() const { return buffer_.as<float>(sums_offset_); }        // [16, value blocks x 16]
  float* head() const { return buffer_.as<float>(head_offset_); }        // [2, head_dim]
  void* elements() const { return buffer_.as<char>(elements_offset_); }  // [2, head_dim], of either dtype

 private:
  int64_t stride_, probabilities_offset_, sums_offset_, head_offset_, elements_offset_;
  HugeBuffer buffer_;
};

// Consecutive rows of a piece, for one KV head.
struct AttentionItem {
  const Piece* piece;
  int kv_head;
  int first, last;  // tokens of the piece, or query rows: token * heads per KV head + head
};

// The items of a step, the same for each of its layers.
struct AttentionItems {
  // Up to 16 positions each: two that share a word of the cache are in one item.
  std::vector<AttentionItem> rope;
  std::vector<AttentionItem> attend;  // up to 16 query rows each
  bool is_joint = false;              // both in one phase: an item of `attend` is all rows of a piece

  // For so many threads.
  void plan(const std::vector<Piece>& pieces, const LlamaConfig& config, int num_threads);
};

// Queries with norm and rope, keys and values into the cache, for the tokens [first, last) of a piece.
void rope_and_store(const AttentionStep& step, const AttentionScratch& scratch, const Piece& piece,
                    int kv_head, int first, int last);

// softmax(q k^T / sqrt(head_dim)) v over positions <= the row's own, or the piece's last for an open row,
// the last attention_window of them, block by block, with the bits of a cache in one piece. The keys and
// values that the item reads must have been stored.
void attend(const AttentionStep& step, const AttentionScratch& scratch, const AttentionItem& item);

}  // namespace pearl
