// The taps of a target's latest rows, kept for a head that is fed them (EAGLE-3): one bounded range of
// positions for each slot. Feeds the head the prompts as the target goes through them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "coordinator/state.h"
#include "core/executor.h"

namespace pearl {

// Row t of the head is fed token t + 1 with the taps of token t, and lies at position t of its KV cache.
// Written by the target's lane, and by the draft's between a verdict and the next score: the program orders
// the two.
class TapRows : public TapReader {
 public:
  // Throws Failure(kRequest) for a head that is fed no taps.
  explicit TapRows(std::shared_ptr<Executor> head);

  // One target's lane at a time -> whether they were free.
  bool claim() { return !claimed_.exchange(true, std::memory_order_acq_rel); }
  void give_back() { claimed_.store(false, std::memory_order_release); }

  // Throws Failure(kRequest) for a target whose taps are not those of the head.
  void attach(const Executor& target, const State& state);

  // A run begins that drafts windows behind scores: nothing is kept yet. The state outlives it.
  void start(State* state);
  bool is_of(const State* state) const { return state_ == state; }

  void place(std::vector<Segment>* segments) override;
  // Feeds the head what it now can be fed of the prompts among them.
  void take(const std::vector<Segment>& segments) override;

  // Rows of the head that hold what the target computed, from the first on.
  int64_t fed(int slot) const { return fed_[slot]; }
  // Whether the taps of rows [start, end) are kept, and the head can be fed so far.
  bool has(int slot, int64_t start, int64_t end) const;
  // These as a segment for the head; from now on rows before `end` are fed.
  Segment rows(int slot, int64_t start, int64_t end);

 private:
  float* row(int slot, int64_t position) {  // of taps
    return rows_.get() + (slot * num_rows_ + position - first_[slot]) * tap_size_;
  }

  const std::shared_ptr<Executor> head_;
  const int64_t tap_size_;
  std::atomic<bool> claimed_{false};

  // Set by attach.
  int64_t num_rows_ = 0;            // that are kept of a slot
  std::unique_ptr<float[]> rows_;   // [B, num_rows_, tap_size_]; of a slot, positions from first_ on
  State* state_ = nullptr;          // set by start
  std::vector<int64_t> first_;      // [B] may be -1: that row is no token's
  std::vector<int64_t> low_, end_;  // [B] positions that are kept: [low_, end_)
  std::vector<int64_t> fed_;        // [B]
  std::vector<Segment> prompts_;    // of a pass of the head
};

}  // namespace pearl
