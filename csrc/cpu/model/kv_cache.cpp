#include "cpu/model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace pearl {

KvCache::KvCache(const LlamaConfig& config, DType dtype, int num_blocks, int block_size)
    : dtype_(dtype),
      num_layers_(config.num_hidden_layers),
      num_blocks_(num_blocks),
      block_size_(block_size),
      num_kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      value_tiles_((config.head_dim + kLanes - 1) / kLanes),
      key_elements_(int64_t{block_size} * config.head_dim),
      value_elements_(int64_t{block_size} * value_tiles_ * kLanes) {
  BlockPool::check(num_blocks, block_size);
  const int64_t heads = int64_t{num_layers_} * num_kv_heads_;
  buffer_ = HugeBuffer(
      heads * num_blocks * (key_elements_ + value_elements_) * size_of(dtype),
      "the KV cache of " + std::to_string(num_blocks) + " x " + std::to_string(block_size) + " tokens");
}

void* KvCache::at(int layer, int kv_head, int64_t element) const {
  const int64_t head = int64_t{layer} * num_kv_heads_ + kv_head;
  return buffer_.as<char>((head * num_blocks_ * (key_elements_ + value_elements_) + element) *
                          size_of(dtype_));
}

// A key and a value of bf16: one word for two dimensions of a key, or for one dimension of two positions'
// values.
void KvCache::store_bf16(char* keys, char* values, int row, const char* key, const char* value) const {
  const int64_t column = row % kLanes;
  for (int64_t pair = 0; pair < head_dim_ / 2; ++pair) {
    std::memcpy(keys + (pair * kLanes + column) * 4, key + pair * 4, 4);
  }
  values += int64_t{row / 2} * kLanes * 4;
  for (int64_t first = 0; first < head_dim_; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, head_dim_ - first);
    char* words = values + first / kLanes * value_stride() * 2;
    for (int64_t i = 0; i < count; ++i) {
      uint16_t one;
      uint32_t word = 0;
      std::memcpy(&one, value + (first + i) * 2, 2);
      if (row % 2 == 1) std::memcpy(&word, words + i * 4, 4);
      word = row % 2 == 1 ? (word & 0xFFFF) | static_cast<uint32_t>(one) << 16 : one;
      std::memcpy(words + i * 4, &word, 4);
    }
  }
}

void KvCache::store_fp32(char* keys, char* values, int row, const char* key, const char* value) const {
  for (int64_t d = 0; d < head_dim_; ++d) {
    std::memcpy(keys + (d * kLanes + row % kLanes) * 4, key + d * 4, 4);
  }
  for (int64_t first = 0; first < head_dim_; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, head_dim_ - first);
    std::memcpy(values + (first / kLanes * value_stride() + int64_t{row} * kLanes) * 4, value + first * 4,
                count * 4);
  }
}

void KvCache::store(int layer, int block, int kv_head, int row, const void* key, const void* value) const {
  char* tile =
      static_cast<char*>(keys(layer, block, kv_head)) + row / kLanes * key_stride() * size_of(dtype_);
  char* rows = static_cast<char*>(values(layer, block, kv_head));
  const auto* k = static_cast<const char*>(key);
  const auto* v = static_cast<const char*>(value);
  dtype_ == DType::kBfloat16 ? store_bf16(tile, rows, row, k, v) : store_fp32(tile, rows, row, k, v);
}

void KvCache::load(int layer, int block, int kv_head, int row, char* key, char* value) const {
  const int64_t size = size_of(dtype_), column = row % kLanes;
  const char* k = static_cast<const char*>(keys(layer, block, kv_head)) + row / kLanes * key_stride() * size;
  const char* v = static_cast<const char*>(values(layer, block, kv_head));
  const int64_t together = 4 / size;  // elements of a word: dimensions of a key, positions of a value
  for (int64_t d = 0; d < head_dim_; d += together) {
    std::memcpy(key + d * size, k + (d / together * kLanes + column) * 4, 4);
  }
  for (int64_t d = 0; d < head_dim_; ++d) {
    const int64_t word = d / kLanes * value_stride() / together + row / together * kLanes + d % kLanes;
    std::memcpy(value + d * size, v + word * 4 + row % together * size, size);
  }
}

void KvCache::copy_rows(int from, int to, int first, int count) const {
  std::vector<char> key(head_dim_ * size_of(dtype_)), value(key.size());
  for (int layer = 0; layer < num_layers_; ++layer) {
    for (int head = 0; head < num_kv_heads_; ++head) {
      for (int row = first; row < first + count; ++row) {
        load(layer, from, head, row, key.data(), value.data());
        store(layer, to, head, row, key.data(), value.data());
      }
    }
  }
}

}  // namespace pearl
