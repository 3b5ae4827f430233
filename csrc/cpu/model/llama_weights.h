// The packed weights of one Llama-family model, immutable and shared by every executor that runs it; or a
// view: some layers of another model's, which it keeps, and perhaps layers of its own behind these; or a head
// (EAGLE-3), whose first layer is fed a token and a row of another model's.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/machine/memory.h"
#include "cpu/weights/pack.h"

namespace pearl {

// The sizes of a model, by Hugging Face's names.
struct LlamaConfig {
  int vocab_size, hidden_size, intermediate_size, num_hidden_layers;
  int num_attention_heads, num_key_value_heads, head_dim;
  float rms_norm_eps;
  bool attention_bias;  // on q, k and v (Qwen2)
  bool output_bias;     // on o (Llama's attention_bias means both)
  bool mlp_bias;        // on gate, up and down
  bool qk_norm;         // RMSNorm of each head's q and k before rope (Qwen3)
  bool tie_word_embeddings;
  int attention_window = 0;  // positions that a row attends to, its own and those before it; 0: all

  // Of a head: numbers of a row of taps that it is fed with, and how many norms these have, each over an
  // equal part; rows of lm_head, of vocab_size if 0. norm_before_residual: the feature that the layer adds to
  // is the normed one. norm_output: what it gives to its next row is behind the final norm.
  int tap_size = 0, num_tap_norms = 0, logits_size = 0;
  bool norm_before_residual = false, norm_output = false;

  bool is_head() const { return tap_size > 0; }
  int head_rows() const { return logits_size > 0 ? logits_size : vocab_size; }
  int attention_inputs() const { return is_head() ? 2 * hidden_size : hidden_size; }
  int heads_per_kv_head() const { return num_attention_heads / num_key_value_heads; }
  int q_size() const { return num_attention_heads * head_dim; }
  int kv_size() const { return num_key_value_heads * head_dim; }
};

// One decoder layer; norms and biases are fp32, padded with zeros to 16.
struct LayerWeights {
  PackedMatrix qkv;      // [q + k + v, hidden]; of a head's layer: embedding and feature, [.., 2 * hidden]
  PackedMatrix o;        // [hidden, q]
  PackedMatrix gate_up;  // [2 * intermediate, hidden]: block 2j is block j of gate, 2j + 1 of up
  PackedMatrix down;     // [hidden, intermediate]
  const float* input_norm;
  const float* post_attention_norm;
  const float* qkv_bias;  // or null, as all biases
  const float* o_bias;
  const float* gate_up_bias;  // in the order of the matrix's rows
  const float* down_bias;
  const float* q_norm;  // [head_dim], or null
  const float* k_norm;
};

class LlamaWeights {
 public:
  using Tensors = std::map<std::string, SourceTensor>;
  using Progress = std::function<void(int layers_done, int layers)>;

  // Packs `tensors` (Hugging Face names), which may go away afterwards, for these kernels. bits: 8 or 4, to
  // which wider matrices are rounded, embedding and head to 8; 0: all stay as they are. Throws
  // std::invalid_argument for a config that cannot be run or a tensor that is missing or mis-shaped,
  // OutOfMemory (with the bytes) if it does not fit, Failure(kCheckpoint) for weights that have no code.
  LlamaWeights(const LlamaConfig& config, const Tensors& tensors, const Kernels& kernels, int bits,
               const Progress& progress)
      : LlamaWeights(config, tensors, kernels, bits, progress, nullptr, {}) {}

  // A view of `whole`: these layers of it, in this order, then num_own layers of `tensors`, which have the
  // numbers behind them, an intermediate size of their own and a final norm. The embedding is the whole's,
  // and the head, if `tensors` have no "lm_head.weight", of as many rows as it has, and the final norm if
  // there are no own layers. Only what is its own takes memory. Throws as above, and std::invalid_argument
  // for a layer that the whole has not got.
  LlamaWeights(std::shared_ptr<const LlamaWeights> whole, const std::vector<int>& layers, int num_own,
               int intermediate_size, const Tensors& tensors, int bits);

  // A head of that config for `target`, with whose kernels it runs: one layer, and beside its tensors
  // "fc.weight", "model.layers.0.hidden_norm.weight" and "tap_norms.N.weight". The embedding is the target's
  // where `tensors` have none. Throws as above.
  LlamaWeights(std::shared_ptr<const LlamaWeights> target, const LlamaConfig& config, const Tensors& tensors,
               int bits);

  const LlamaConfig& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  DType dtype() const { return kernels_.dtype; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const PackedMatrix& lm_head() const { return lm_head_; }  // [vocab, hidden]; of a head [head_rows, hidden]
  // Of a head:
  const PackedMatrix& fuse() const { return fuse_; }         // [hidden, taps]
  const float* hidden_norm() const { return hidden_norm_; }  // of the feature
  const float* tap_norm(int i) const { return tap_norms_[i]; }
  const float* final_norm() const { return final_norm_; }
  const void* data(const PackedMatrix& matrix) const {
    return static_cast<const char*>(matrix.buffer) + matrix.offset;
  }

  // The embedding of a token: out[hidden_size] fp32.
  void embed(int token_id, float* out) const;

  int64_t step_bytes() const { return step_bytes_; }  // read by a decode step: all matrices, once
  bool in_memory() const {
    return in_memory_;
  }  // too large to stay in the last-level cache from step to step
  int64_t memory_bytes() const { return buffer_.bytes(); }  // what is not another's

 private:
  // whole: null, or what a view begins with `shared` layers of.
  LlamaWeights(const LlamaConfig& config, const Tensors& tensors, const Kernels& kernels, int bits,
               const Progress& progress, std::shared_ptr<const LlamaWeights> whole,
               const std::vector<int>& shared);

  std::shared_ptr<const LlamaWeights> whole_;
  LlamaConfig config_;  // intermediate_size: the largest of its layers
  const Kernels& kernels_;
  HugeBuffer buffer_;
  std::vector<LayerWeights> layers_;
  PackedMatrix lm_head_;
  PackedMatrix embedding_;  // if it is untied and has codes
  const float* final_norm_ = nullptr;
  PackedMatrix fuse_;  // of a head, as these
  const float* hidden_norm_ = nullptr;
  std::vector<const float*> tap_norms_;
  int64_t embedding_offset_ = -1;  // rows as they are, if untied; else rows are read out of lm_head
  int64_t step_bytes_ = 0;
  bool in_memory_ = true;
};

}  // namespace pearl
