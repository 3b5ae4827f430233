// An executor for tests: logits are a pure function of the tokens in its cache, so that a stale, missing or
// misplaced KV row changes the answer; of a row that sees later ones, of these too, and of its place. It can
// be slow at random or by a given time, emit NaN, or throw.
#pragma once

#include <atomic>
#include <random>
#include <string>
#include <vector>

#include "core/executor.h"

namespace pearl {

struct Script {
  int vocab_size = 16;
  int64_t max_model_len = 256;
  int num_slots = 1;
  uint64_t rule = 0;        // two executors with one rule give the same logits ...
  double divergence = 0.0;  // ... but for this share of the rows
  double scale = 4.0;       // logits lie in [-scale, scale]
  int delay_min_us = 0;     // of each forward
  int delay_max_us = 0;
  uint64_t delay_seed = 0;
  double step_us = 0;     // of each forward, from call to return, whatever its rows; 0: no longer than needed
  int64_t nan_at = -1;    // forward call (0, 1, ..) that writes NaN into its last logit row
  int64_t throw_at = -1;  // forward call that throws
  std::string error;   // "memory" throws bad_alloc, "foreign" what is no std::exception, else runtime_error
  int num_blocks = 0;  // of the cache; 0: every slot whole
  int block_size = 0;  // positions of each; 0: BlockPool's choice
  bool has_taps = false;  // a row of them is the hash of the tokens up to there
  // Of a head, which is fed such taps: the id of each of its rows. Behind a token and the taps of the one
  // before it the head says what a model of the same rule says behind both.
  std::vector<int32_t> head_ids = {};
};

class ScriptedExecutor : public Executor {
 public:
  explicit ScriptedExecutor(const Script& script);

  void forward(const Segment* segments, int num_segments) override;
  void copy_rows(int from, int to, int first, int count) override;
  int vocab_size() const override { return script_.vocab_size; }
  int logits_size() const override {
    return script_.head_ids.empty() ? script_.vocab_size : static_cast<int>(script_.head_ids.size());
  }
  int64_t tap_size() const override { return script_.has_taps || is_head() ? kTapSize : 0; }
  int64_t max_model_len() const override { return script_.max_model_len; }
  int num_slots() const override { return script_.num_slots; }
  int num_blocks() const override { return static_cast<int>(cache_.size() / block_size_); }
  int block_size() const override { return block_size_; }

  int64_t num_forwards() const { return calls_.load(std::memory_order_relaxed); }
  int64_t num_tokens() const { return tokens_.load(std::memory_order_relaxed); }
  int64_t num_copied() const { return copied_.load(std::memory_order_relaxed); }  // rows
  int64_t max_position() const { return max_position_.load(std::memory_order_relaxed); }

 private:
  static constexpr int kTapSize = 3;  // 22 bits each, which a float holds

  bool is_head() const { return !script_.head_ids.empty(); }
  uint64_t before(const Segment& segment, int token);
  uint64_t hash_of_all(const Segment& segment, int first);
  void check_blocks(const Segment* segments, int num_segments) const;
  void feed(const Segment& segment);
  void write_row(uint64_t prefix, float* logits) const;
  void delay();

  uint64_t& row(const Segment& segment, int64_t position);

  const Script script_;
  const int block_size_;
  const int64_t blocks_per_slot_;
  std::vector<uint64_t> cache_;  // [num_blocks, block_size] hash of the tokens up to here; 0 = never written
  std::vector<uint64_t> given_;  // [num_slots] of a head: the hash behind the last token of each slot
  std::mt19937_64 delays_;
  std::atomic<bool> busy_{false};
  std::atomic<int64_t> calls_{0};
  std::atomic<int64_t> tokens_{0};
  std::atomic<int64_t> copied_{0};
  std::atomic<int64_t> max_position_{-1};
};

}  // namespace pearl
