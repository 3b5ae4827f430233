// One pass of up to 128 rows through a Llama-family model, as phases that a core set runs: its order, its
// buffers, and what one item computes. Knows nothing of slots or of how a prompt is cut.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/machine/core_set.h"
#include "cpu/model/attention.h"
#include "cpu/model/kv_cache.h"
#include "cpu/model/llama_weights.h"

namespace pearl {

class LlamaStep final : public Work {
 public:
  static constexpr int kMostRows = 128;  // a prefill reads the weights once for so many tokens

  struct TokenRow {
    int32_t token_id;
    float* logits = nullptr;  // each may be null
    float* taps = nullptr;    // [tap_layers, hidden] the inputs of these layers
    // Of a head: what it is fed beside the token, taps or the row's feature, and where what it gives to the
    // next row goes, which may be there.
    const float* features = nullptr;  // [tap_size]
    const float* own = nullptr;       // [hidden]
    float* output = nullptr;          // [hidden]
  };

  // cos, sin: [max_model_len, head_dim / 2]. All must outlive the step. Throws OutOfMemory.
  LlamaStep(const LlamaWeights& weights, const CoreSet& core_set, const KvCache& cache, int64_t max_model_len,
            const float* cos, const float* sin);

  // The rows of the next run, at most kMostRows, and the sequences that they belong to.
  std::vector<TokenRow> token_rows;
  std::vector<Piece> pieces;
  std::vector<int> tap_layers;  // ascending; the number of layers: what the last one leaves

  // The phases for them. is_whole: false for the linear layers alone, on whatever the buffers hold.
  void plan(bool is_whole);

  int begin(int phase) override;
  void run(int phase, int item, int worker) override;

 private:
  // A matrix [rows, stride] of activations.
  struct Rows {
    void* data;
    int64_t stride;  // elements
  };
  struct Linear {
    const PackedMatrix* matrix = nullptr;
    Rows x = {};
    Epilogue epilogue = Epilogue::kStore;
    Rows out = {};
    const float* bias = nullptr;
    float* const* out_rows = nullptr;
    const PackedMatrix* next = nullptr;  // what is read afterwards
  };
  // kEmbed, kNorm, kCodes: rows of the step, into residual_, normed_ and codes_. kTap: out of residual_. Of a
  // head: kTaps into taps_, kFeature into residual_ and normed_, kOutput out of residual_.
  enum class Kind {
    kEmbed,
    kNorm,
    kCodes,
    kTap,
    kTaps,
    kFeature,
    kOutput,
    kLinear,
    kRope,
    kAttend,
    kRopeAndAttend
  };
  struct Phase {
    Kind kind;
    int count;  // items
    int rows;
    int layer;               // kTap: of tap_layers
    const float* norm;       // kNorm; kLinear: each worker norms the one row for itself, or null
    const int* row_numbers;  // of the rows to norm; null: all
    bool own_codes;          // kLinear: each worker makes the codes of the rows for itself
    Linear linear;
  };
  // What one thread owns, in lines of its own: it writes here, and the next worker reads what is its.
  struct alignas(128) Worker {
    AttentionScratch attention;
    HugeBuffer normed;    // [16, hidden] elements: the normed row of a step of one row
    HugeBuffer codes;     // kOwnRows rows of codes
    uint64_t serial = 0;  // of the phase that it last ran an item of
  };

  int row_items(int rows) const;
  int matrix_items(const PackedMatrix& matrix, int rows) const;
  void add_linear(int layer, const Linear& linear, int rows, const float* norm, const int* row_numbers);
  void add_attention(int layer);
  void add_tap(int layer);
  void add_rows(Kind kind, int rows, int layer = 0) {
    phases_.push_back({kind, row_items(rows), rows, layer, nullptr, nullptr, false, {}});
  }
  void add_head_inputs();

  const void* blocks_from(const PackedMatrix& matrix, int first) const;
  const void* start_of_share(const PackedMatrix& matrix, int worker) const;
  void norm_row(const Phase& phase, int row, void* out) const;
  void make_codes(const Linear& linear, int row, char* out) const;
  void apply(const Phase& phase, int item, int worker, bool is_first);
  void attend_item(const Phase& phase, int item, int worker);
  void run_row(const Phase& phase, int row);
  void take_taps(int row);
  void take_feature(int row);
  void give_output(int row);
  float* residual(int row) const { return static_cast<float*>(residual_.data) + row * residual_.stride; }
  char* elements(const Rows& rows, int row) const {
    return static_cast<char*>(rows.data) + row * rows.stride * size_of(weights_.dtype());
  }
  void widen(const void* elements, float* out) const;  // hidden_size of them

  const LlamaWeights& weights_;
  const CoreSet& core_set_;
  const KvCache& cache_;
  const float* const cos_;
  const float* const sin_;
  std::vector<Worker> workers_;
  HugeBuffer buffer_;
  // parts of buffer_, [kMostRows, ...]
  Rows residual_, qkv_;  // fp32
  Rows normed_, attended_,
      activated_;         // elements; of a head's first linear layer, normed_ is embedding, feature
  Rows taps_, embedded_;  // of a head: elements, fp32
  void* queries_;
  char* codes_;  // kMostRows rows of codes, for matrices that have a form
  // made by plan for one run
  std::vector<Phase> phases_;
  uint64_t first_serial_ = 1;  // of phases_; each run has others
  AttentionItems items_;
  std::vector<float*> logits_rows_;  // where logits are wanted
  std::vector<int> wanted_rows_;     // of which rows
  std::vector<int> fused_rows_;      // of a head: those that are fed taps
  std::vector<float*> fused_;        // their rows of residual_
};

}  // namespace pearl
