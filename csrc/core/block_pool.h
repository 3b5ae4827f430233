// The blocks of a KV cache: which are free, and that none is given out twice.
// Knows ids only; one id means the same positions in every layer, and in the caches of both models.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/checks.h"

namespace pearl {

class BlockPool {
 public:
  static constexpr int kSmallest = 16, kLargest = 256;  // positions of a block
  static constexpr int kMost = 1 << 24;                 // blocks

  BlockPool(int num_blocks, int block_size) : num_blocks_(num_blocks), block_size_(block_size) {
    check(num_blocks, block_size);
    is_free_.assign(num_blocks, true);
    for (int id = num_blocks - 1; id >= 0; --id) free_.push_back(id);
    num_free_ = num_blocks;
  }

  // Throws Failure(kRequest) for sizes that no cache can have.
  static void check(int64_t num_blocks, int64_t block_size) {
    check_between("num_blocks", num_blocks, 1, kMost);
    if (block_size % kSmallest != 0 || block_size < kSmallest || block_size > kLargest) {
      refuse("block_size is " + std::to_string(block_size) + "; it must be a multiple of " +
             std::to_string(kSmallest) + ", up to " + std::to_string(kLargest));
    }
  }

  // The block size of a cache of sequences of `length` tokens by default: one block for those that fit.
  static int size_for(int64_t length) {
    const int64_t padded = (length + kSmallest - 1) / kSmallest * kSmallest;
    return static_cast<int>(std::clamp<int64_t>(padded, kSmallest, kLargest));
  }

  // The blocks of a cache in which each of num_slots sequences of `length` tokens has its own.
  static int64_t blocks_of_slots(int64_t num_slots, int64_t length, int block_size) {
    const int64_t size = std::max(block_size, 1);  // check() refuses what is less
    return num_slots * ((length + size - 1) / size);
  }

  int num_blocks() const { return num_blocks_; }
  int block_size() const { return block_size_; }
  int64_t blocks_for(int64_t num_tokens) const { return (num_tokens + block_size_ - 1) / block_size_; }
  // From any thread; reserve and release are one thread's at a time.
  int num_free() const { return num_free_.load(std::memory_order_acquire); }

  // Writes `count` ids, the one released last first; or false, and nothing has changed, if there are fewer.
  bool reserve(int count, int32_t* ids) {
    if (count > static_cast<int>(free_.size())) return false;
    for (int i = 0; i < count; ++i) {
      ids[i] = free_.back();
      free_.pop_back();
      is_free_[ids[i]] = false;
    }
    num_free_.store(static_cast<int>(free_.size()), std::memory_order_release);
    return true;
  }

  // Takes back ids in the order of reserve, none twice. Throws std::logic_error for one that is free,
  // before any is taken.
  void release(const int32_t* ids, int count) {
    for (int i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= num_blocks_ || is_free_[ids[i]]) {
        while (--i >= 0) is_free_[ids[i]] = false;
        throw std::logic_error("a KV block was released that is free");
      }
      is_free_[ids[i]] = true;
    }
    free_.insert(free_.end(), std::make_reverse_iterator(ids + count), std::make_reverse_iterator(ids));
    num_free_.store(static_cast<int>(free_.size()), std::memory_order_release);
  }

 private:
  const int num_blocks_, block_size_;
  std::vector<int32_t> free_;  // the last is given out first, so that a busy cache stays small
  std::vector<bool> is_free_;  // [num_blocks]
  std::atomic<int> num_free_;
};

}  // namespace pearl
