#include "cpu/kv_cache.h"

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

template <class T>
void KvCache::store_as(int layer, int slot, int kv_head, int64_t position, const T* key,
                       const T* value) const {
  constexpr int64_t kPair = 4 / sizeof(T);  // elements that share a word
  T* keys_out = static_cast<T*>(keys(layer, slot, kv_head)) + position / kLanes * key_stride();
  const int64_t column = position % kLanes;
  for (int64_t d = 0; d < head_dim_; ++d)
    keys_out[(d / kPair * kLanes + column) * kPair + d % kPair] = key[d];
  T* values_out = static_cast<T*>(values(layer, slot, kv_head)) + position / kPair * kPair * kLanes;
  const int64_t half = position % kPair;
  for (int64_t d = 0; d < head_dim_; ++d) {
    T* word = values_out + d / kLanes * value_stride() + d % kLanes * kPair;
    word[half] = value[d];
    if (half + 1 < kPair) word[half + 1] = T{};
  }
}

void KvCache::store(int layer, int slot, int kv_head, int64_t position, const void* key,
                    const void* value) const {
  if (dtype_ == DType::kBfloat16) {
    store_as(layer, slot, kv_head, position, static_cast<const uint16_t*>(key),
             static_cast<const uint16_t*>(value));
  } else {
    store_as(layer, slot, kv_head, position, static_cast<const float*>(key),
             static_cast<const float*>(value));
  }
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
