// The blocks of a KV cache: how many sequences hold each, and which can be given out.
// Knows ids only; one id means the same positions in every layer, and in the caches of both models.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
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
    holders_.assign(num_blocks, 0);
    places_.assign(num_blocks, Place::kFree);
    is_kept_.assign(num_blocks, false);
    after_.assign(num_blocks + 1, num_blocks);
    before_.assign(num_blocks + 1, num_blocks);
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
  // That no sequence holds, kept ones too. From any thread; what changes the pool is one thread's at a time.
  int num_free() const { return num_free_.load(std::memory_order_acquire); }

  // Writes `count` ids, each with one holder; or false, and nothing has changed, if there are fewer. Ids that
  // hold nothing first, the one released last before others; then kept ones, the one released first.
  bool reserve(int count, int32_t* ids) {
    if (count > num_free()) return false;
    for (int i = 0; i < count; ++i) {
      if (free_.empty()) {
        const int32_t oldest = after_[num_blocks_];
        unlink(oldest);
        is_kept_[oldest] = false;
        free_.push_back(oldest);
      }
      ids[i] = free_.back();
      free_.pop_back();
      places_[ids[i]] = Place::kHeld;
      holders_[ids[i]] = 1;
    }
    count_free(-count);
    return true;
  }

  // One more sequence holds a block that is held, or kept.
  void share(int32_t id) {
    if (holders_[id]++ > 0) return;
    unlink(id);
    places_[id] = Place::kHeld;
    count_free(-1);
  }

  // Each of these ids, in the order of reserve, has one holder less. Throws std::logic_error for one that has
  // none, before any has changed.
  void release(const int32_t* ids, int count) {
    for (int i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= num_blocks_ || holders_[ids[i]] == 0) {
        while (--i >= 0) ++holders_[ids[i]];
        throw std::logic_error("a KV block was released that is free");
      }
      --holders_[ids[i]];
    }
    int freed = 0;
    for (int i = count - 1; i >= 0; --i) {  // the first is the last to be given out to others
      if (holders_[ids[i]] > 0 || places_[ids[i]] != Place::kHeld) continue;
      put_away(ids[i]);
      ++freed;
    }
    count_free(freed);
  }

  // Whether a block's rows are worth finding again: once no sequence holds it, it is given out last.
  bool is_kept(int32_t id) const { return is_kept_[id]; }
  void set_kept(int32_t id, bool kept) {
    is_kept_[id] = kept;
    if (places_[id] != Place::kKept || kept) return;
    unlink(id);
    put_away(id);
  }

 private:
  enum class Place : uint8_t { kHeld, kFree, kKept };

  void put_away(int32_t id) {
    places_[id] = is_kept_[id] ? Place::kKept : Place::kFree;
    if (!is_kept_[id]) return free_.push_back(id);
    const int32_t last = before_[num_blocks_];
    after_[last] = before_[num_blocks_] = id;
    before_[id] = last;
    after_[id] = num_blocks_;
  }
  void unlink(int32_t id) {
    after_[before_[id]] = after_[id];
    before_[after_[id]] = before_[id];
  }
  void count_free(int more) { num_free_.store(num_free() + more, std::memory_order_release); }

  const int num_blocks_, block_size_;
  std::vector<int32_t> free_;  // the last is given out first, so that a busy cache stays small
  std::vector<int32_t> holders_;
  std::vector<Place> places_;
  std::vector<bool> is_kept_;
  // A ring through entry num_blocks: kept blocks that no sequence holds, the one released first behind it.
  std::vector<int32_t> after_, before_;
  std::atomic<int> num_free_;
};

}  // namespace pearl
