// Keys and values in a pool of blocks, packed like weights, so that attention over a block is two matmuls.
// The caller knows which sequence has which block and which rows are valid: rows at and past the end of the
// last forward are stale.
#pragma once

#include <cstdint>

#include "cache/block_pool.h"
#include "cpu/machine/memory.h"
#include "cpu/model/llama_weights.h"

namespace pearl {

// A block is block_size positions of one sequence, in every layer and KV head at once. Of each of these the
// keys of all blocks lie together, then their values; of one block:
//
// bf16:  keys   [positions / 16][head_dim / 2][16 positions][2]
//        values [head_dim / 16][positions / 2][16 dimensions][2]
// fp32:  keys   [positions / 16][head_dim][16], values [head_dim / 16][positions][16]
//
// which is a matmul's w with n = position and k = dimension, or n = dimension and k = position.
class KvCache {
 public:
  KvCache(const LlamaConfig& config, DType dtype, int num_blocks, int block_size);

  int num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }
  int64_t bytes() const { return buffer_.bytes(); }
  int value_tiles() const { return value_tiles_; }  // ceil(head_dim / 16)
  // Elements from 16 positions to the next, and from 16 dimensions to the next.
  int64_t key_stride() const { return int64_t{head_dim_} * kLanes; }
  int64_t value_stride() const { return int64_t{block_size_} * kLanes; }

  void* keys(int layer, int block, int kv_head) const { return at(layer, kv_head, block * key_elements_); }
  void* values(int layer, int block, int kv_head) const {
    return at(layer, kv_head, num_blocks_ * key_elements_ + block * value_elements_);
  }

  // Writes row `row` of a block: key and value are head_dim elements. The row after an even one becomes zero,
  // since both share words that a matmul reads: rows past the end of a segment are undefined once it has been
  // fed.
  void store(int layer, int block, int kv_head, int row, const void* key, const void* value) const;

  // Rows [first, first + count) of a block, of every layer and head, become those of another one.
  void copy_rows(int from, int to, int first, int count) const;

 private:
  void* at(int layer, int kv_head, int64_t element) const;
  // keys: the 16 positions of the row; values: of the whole block.
  void store_bf16(char* keys, char* values, int row, const char* key, const char* value) const;
  void store_fp32(char* keys, char* values, int row, const char* key, const char* value) const;
  // What store was given: head_dim elements each.
  void load(int layer, int block, int kv_head, int row, char* key, char* value) const;

  DType dtype_;
  int num_layers_, num_blocks_, block_size_, num_kv_heads_, head_dim_, value_tiles_;
  int64_t key_elements_, value_elements_;  // of one (layer, KV head, block)
  HugeBuffer buffer_;
};

}  // namespace pearl
