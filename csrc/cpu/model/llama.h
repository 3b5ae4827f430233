// The forward pass of a Llama-family model on a set of cores: rows in, logits out. Owns the KV cache and cuts
// what is fed into steps; knows nothing of sampling, strategies or lanes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/executor.h"
#include "cpu/machine/core_set.h"
#include "cpu/model/kv_cache.h"
#include "cpu/model/llama_step.h"
#include "cpu/model/llama_weights.h"

namespace pearl {

class LlamaExecutor : public Executor {
 public:
  // cos, sin: [max_model_len, head_dim / 2] fp32, copied. block_size unset: BlockPool's choice; num_blocks
  // unset: every slot whole. tap_layers: whose inputs are the taps of a token, ascending; the number of
  // layers: what the last one leaves. Throws std::invalid_argument or OutOfMemory.
  LlamaExecutor(std::shared_ptr<const LlamaWeights> weights, std::shared_ptr<CoreSet> core_set, int num_slots,
                int64_t max_model_len, const float* cos, const float* sin, std::optional<int> num_blocks = {},
                std::optional<int> block_size = {}, std::vector<int> tap_layers = {});

  // Rows of a sequence at and past start + num_tokens are undefined afterwards; the slots of the segments
  // differ, and the blocks that one writes must be in no other's table. Throws std::invalid_argument for a
  // slot, position, token id, block or count out of range, before anything is written, and std::logic_error
  // for a second thread.
  void forward(const Segment* segments, int num_segments) override;
  // Throws Failure(kRequest) for a block or a row out of range.
  void copy_rows(int from, int to, int first, int count) override;
  int vocab_size() const override { return weights_->config().vocab_size; }
  int logits_size() const override { return weights_->config().head_rows(); }
  int64_t tap_size() const override { return tap_size_; }
  int64_t max_model_len() const override { return max_model_len_; }
  int num_slots() const override { return num_slots_; }
  int num_blocks() const override { return cache_.num_blocks(); }
  int block_size() const override { return cache_.block_size(); }

  const LlamaWeights& weights() const { return *weights_; }
  CoreSet& core_set() const { return *core_set_; }
  const KvCache& cache() const { return cache_; }

  // Seconds of the fastest of `repeats` passes over the linear layers of a step of `rows` rows.
  double time_linears(int rows, int repeats);

 private:
  void check(const Segment* segments, int num_segments) const;
  void check_blocks(const Segment& segment, int index) const;
  const int32_t* block_table(const Segment& segment) const;
  LlamaStep::TokenRow token_row(const Segment& segment, int token);
  void run_step(bool is_whole = true);

  std::shared_ptr<const LlamaWeights> weights_;
  std::shared_ptr<CoreSet> core_set_;
  const int num_slots_;
  const int64_t max_model_len_;
  std::atomic<bool> busy_{false};
  KvCache cache_;
  std::vector<int32_t> own_blocks_;  // [num_slots, blocks of max_model_len] 0, 1, ..
  std::vector<float> cos_, sin_;
  LlamaStep step_;
  int64_t tap_size_ = 0;
  std::vector<float> outputs_;  // [num_slots, hidden] of a head: what it gave at the last token of each slot
};

}  // namespace pearl
