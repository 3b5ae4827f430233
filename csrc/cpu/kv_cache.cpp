#include "cpu/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace pearl {

KvCache::KvCache(const LlamaConfig& config, DType dtype, int num_slots, int64_t max_model_len)
    : dtype_(dtype),
      num_layers_(config.num_hidden_layers),
      num_slots_(num_slots),
      num_kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      value_blocks_((config.head_dim + kLanes - 1) / kLanes),
      max_model_len_(max_model_len),
      padded_len_(round_up(max_model_len, kLanes)) {
  constexpr int64_t kLongest = std::numeric_limits<int>::max() - 64;  // positions are int inside a matmul
  if (num_slots < 1)
    throw std::invalid_argument("num_slots is " + std::to_string(num_slots) + "; it is at least 1");
  if (max_model_len < 1 || max_model_len > kLongest) {
    throw std::invalid_argument("max_model_len is " + std::to_string(max_model_len) +
                                "; it is at least 1 and at most " + std::to_string(kLongest));
  }
  key_elements_ = padded_len_ * head_dim_;
  head_elements_ = key_elements_ + padded_len_ * value_blocks_ * kLanes;
  const int64_t heads = int64_t{num_layers_} * num_slots_ * num_kv_heads_;
  buffer_ = HugeBuffer(
      heads * head_elements_ * size_of(dtype),
      "the KV cache of " + std::to_string(num_slots) + " x " + std::to_string(max_model_len) + " tokens");
}

void* KvCache::at(int layer, int slot, int kv_head, int64_t element) const {
  const int64_t head = (int64_t{layer} * num_slots_ + slot) * num_kv_heads_ + kv_head;
  return buffer_.as<char>((head * head_elements_ + element) * size_of(dtype_));
}

// A key and a value of bf16: one word for two dimensions of a key, or for one dimension of two positions'
// values.
void KvCache::store_bf16(char* keys, char* values, int64_t position, const char* key,
                         const char* value) const {
  const int64_t column = position % kLanes;
  for (int64_t pair = 0; pair < head_dim_ / 2; ++pair) {
    std::memcpy(keys + (pair * kLanes + column) * 4, key + pair * 4, 4);
  }
  values += position / 2 * kLanes * 4;
  for (int64_t first = 0; first < head_dim_; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, head_dim_ - first);
    char* words = values + first / kLanes * value_stride() * 2;
    for (int64_t i = 0; i < count; ++i) {
      uint16_t one;
      uint32_t word = 0;
      std::memcpy(&one, value + (first + i) * 2, 2);
      if (position % 2 == 1) std::memcpy(&word, words + i * 4, 4);
      word = position % 2 == 1 ? (word & 0xFFFF) | static_cast<uint32_t>(one) << 16 : one;
      std::memcpy(words + i * 4, &word, 4);
    }
  }
}

void KvCache::store_fp32(char* keys, char* values, int64_t position, const char* key,
                         const char* value) const {
  for (int64_t d = 0; d < head_dim_; ++d) {
    std::memcpy(keys + (d * kLanes + position % kLanes) * 4, key + d * 4, 4);
  }
  for (int64_t first = 0; first < head_dim_; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, head_dim_ - first);
    std::memcpy(values + (first / kLanes * value_stride() + position * kLanes) * 4, value + first * 4,
                count * 4);
  }
}

void KvCache::store(int layer, int slot, int kv_head, int64_t position, const void* key,
                    const void* value) const {
  char* block =
      static_cast<char*>(keys(layer, slot, kv_head)) + position / kLanes * key_stride() * size_of(dtype_);
  char* rows = static_cast<char*>(values(layer, slot, kv_head));
  const auto* k = static_cast<const char*>(key);
  const auto* v = static_cast<const char*>(value);
  dtype_ == DType::kBfloat16 ? store_bf16(block, rows, position, k, v)
                             : store_fp32(block, rows, position, k, v);
}

void KvCache::poison(int slot, int64_t position) const {
  const std::vector<uint16_t> nan_bf16(head_dim_, 0x7FC0);
  const std::vector<float> nan_fp32(head_dim_, std::numeric_limits<float>::quiet_NaN());
  const bool bf16 = dtype_ == DType::kBfloat16;
  const void* row = bf16 ? static_cast<const void*>(nan_bf16.data()) : nan_fp32.data();
  for (int layer = 0; layer < num_layers_; ++layer) {
    for (int head = 0; head < num_kv_heads_; ++head) {
      for (int64_t p = position; p < padded_len_; ++p) store(layer, slot, head, p, row, row);
    }
  }
}

}  // namespace pearl
