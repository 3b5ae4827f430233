// Keys and values of every (layer, slot, KV head), packed like weights, so that attention is two matmuls.
// Which rows are valid is the caller's business: rows at and past the end of the last forward are stale.
#pragma once

#include <cstdint>

#include "cpu/llama_weights.h"
#include "cpu/memory.h"

namespace pearl {

// bf16:  keys   [positions / 16][head_dim / 2][16 positions][2]      a matmul's w with n = position, k =
// dimension
//        values [head_dim / 16][positions / 2][16 dimensions][2]     a matmul's w with n = dimension, k =
//        position
// fp32:  keys   [positions / 16][head_dim][16], values [head_dim / 16][positions][16]
class KvCache {
 public:
  KvCache(const LlamaConfig& config, DType dtype, int num_slots, int64_t max_model_len);

  int num_slots() const { return num_slots_; }
  int64_t max_model_len() const { return max_model_len_; }
  int64_t bytes() const { return buffer_.bytes(); }
  int value_blocks() const { return value_blocks_; }                  // ceil(head_dim / 16)
  int64_t key_stride() const { return int64_t{head_dim_} * kLanes; }  // elements from block to block
  int64_t value_stride() const { return padded_len_ * kLanes; }

  void* keys(int layer, int slot, int kv_head) const { return at(layer, slot, kv_head, 0); }
  void* values(int layer, int slot, int kv_head) const { return at(layer, slot, kv_head, key_elements_); }

  // Writes row `position`: key and value are head_dim elements. The row after an even one becomes zero, since
  // both share words that a matmul reads: rows past the end of a segment are undefined once it has been fed.
  void store(int layer, int slot, int kv_head, int64_t position, const void* key, const void* value) const;

  // Fills the rows of a slot from `position` on with NaN, in every layer: for tests.
  void poison(int slot, int64_t position) const;

 private:
  void* at(int layer, int slot, int kv_head, int64_t element) const;
  // keys: the block of the position; values: of the whole head.
  void store_bf16(char* keys, char* values, int64_t position, const char* key, const char* value) const;
  void store_fp32(char* keys, char* values, int64_t position, const char* key, const char* value) const;

  DType dtype_;
  int num_layers_, num_slots_, num_kv_heads_, head_dim_, value_blocks_;
  int64_t max_model_len_, padded_len_;    // rows of a slot, asked for and padded to 16
  int64_t key_elements_, head_elements_;  // of one (layer, slot, KV head)
  HugeBuffer buffer_;
};

}  // namespace pearl
