// The forward pass of a Llama-family model on a set of cores: rows in, logits out. Owns the KV cache and the
// buffers of a step; knows nothing of sampling, strategies or lanes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/executor.h"
#include "cpu/machine/core_set.h"
#include "cpu/model/attention.h"
#include "cpu/model/kv_cache.h"
#include "cpu/model/llama_weights.h"

namespace pearl {

class LlamaExecutor : public Executor {
 public:
  // cos, sin: [max_model_len, head_dim / 2] fp32, copied. block_size unset: BlockPool's choice; num_blocks
  // unset: every slot whole. Throws std::invalid_argument or OutOfMemory.
  LlamaExecutor(std::shared_ptr<const LlamaWeights> weights, std::shared_ptr<CoreSet> core_set, int num_slots,
                int64_t max_model_len, const float* cos, const float* sin, std::optional<int> num_blocks = {},
                std::optional<int> block_size = {});

  // Rows of a sequence at and past start + num_tokens are undefined afterwards; the slots of the segments
  // differ, and the blocks that one writes must be in no other's table. Throws std::invalid_argument for a
  // slot, position, token id, block or count out of range, before anything is written, and std::logic_error
  // for a second thread.
  void forward(const Segment* segments, int num_segments) override;
  int vocab_size() const override { return weights_->config().vocab_size; }
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
  // A matrix [rows, stride] of activations.
  struct Rows {
    void* data;
    int64_t stride;  // elements
  };
  // A linear layer as one thread sees it.
  struct Linear {
    const PackedMatrix& matrix;
    Rows x;
    Epilogue epilogue;
    Rows out;
    const float* bias = nullptr;
    float* const* out_rows = nullptr;
    const PackedMatrix* next = nullptr;  // what this thread reads afterwards
  };
  // What one thread owns.
  struct Worker {
    AttentionScratch attention;
    HugeBuffer normed;  // [16, hidden] elements: the normed row of a step of one row
    HugeBuffer codes;   // kOwnRows rows of codes
  };
  struct TokenRow {
    int32_t token_id;
    float* logits;  // or null
  };

  void check(const Segment* segments, int num_segments) const;
  void check_blocks(const Segment& segment, int index) const;
  const int32_t* block_table(const Segment& segment) const;
  // is_whole: false for the linear layers alone, on whatever the buffers hold.
  void run_step(bool is_whole = true);
  void step(int index, bool is_whole);
  void attend_rows(int layer, int index);
  void apply(const Linear& linear, int rows, int index);
  void apply_grouped(const Linear& linear, int rows, int index, const MatmulArgs& out);
  Rows norm(const float* weight, int index);
  void share_of(const PackedMatrix& matrix, int index, int* first, int* count) const;
  const void* start_of_share(const PackedMatrix& matrix, int index) const;

  std::shared_ptr<const LlamaWeights> weights_;
  std::shared_ptr<CoreSet> core_set_;
  const int num_slots_;
  const int64_t max_model_len_;
  std::atomic<bool> busy_{false};
  KvCache cache_;
  std::vector<int32_t> own_blocks_;  // [num_slots, blocks of max_model_len] 0, 1, ..
  std::vector<float> cos_, sin_;
  std::vector<Worker> workers_;
  HugeBuffer buffer_;
  // parts of buffer_, [kStepRows, ...]
  Rows residual_, qkv_;                 // fp32
  Rows normed_, attended_, activated_;  // elements
  void* queries_;
  char* codes_;  // kStepRows rows of codes, for matrices that have a form
  // set by forward for one step
  std::vector<Piece> pieces_;
  std::vector<TokenRow> token_rows_;
  std::vector<float*> logits_rows_;  // where logits are wanted
  std::vector<int> wanted_rows_;     // of which rows
};

}  // namespace pearl
