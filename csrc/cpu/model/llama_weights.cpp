#include "cpu/model/llama_weights.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "core/checks.h"
#include "cpu/weights/pack_grouped.h"

namespace pearl {
namespace {

using Parts = std::vector<const SourceTensor*>;

constexpr int64_t kLine = 64;
constexpr int64_t kMostRows = 1 << 30;
constexpr int64_t kMostLayers = 1 << 16;

const SourceTensor& tensor_of(const LlamaWeights::Tensors& tensors, const std::string& name,
                              const std::vector<int64_t>& shape) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw std::invalid_argument("tensor '" + name + "' is missing");
  if (found->second.shape != shape) {
    throw std::invalid_argument("tensor '" + name + "' has shape " + text_of(found->second.shape) +
                                ", expected " + text_of(shape));
  }
  check_memory(found->second);
  return found->second;
}

void check(const LlamaConfig& c) {
  check_between("vocab_size", c.vocab_size, 1, kMostIds);
  check_between("hidden_size", c.hidden_size, 1, kMostRows);
  check_between("intermediate_size", c.intermediate_size, 1, kMostRows / 2);
  check_between("num_hidden_layers", c.num_hidden_layers, 1, kMostLayers);
  check_between("num_attention_heads", c.num_attention_heads, 1, kMostRows);
  check_between("num_key_value_heads", c.num_key_value_heads, 1, kMostRows);
  check_between("head_dim", c.head_dim, 1, kMostRows);
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    throw std::invalid_argument("num_attention_heads " + std::to_string(c.num_attention_heads) +
                                " is not a multiple of num_key_value_heads " +
                                std::to_string(c.num_key_value_heads));
  }
  // What is an int inside the kernels: rows of a matrix, and of the two that are interleaved.
  const int64_t heads = int64_t{c.num_attention_heads} + 2 * int64_t{c.num_key_value_heads};
  check_between("all heads x head_dim", heads > kMostRows ? heads : heads * c.head_dim, 1, kMostRows);
  check_number("rms_norm_eps", c.rms_norm_eps, c.rms_norm_eps >= 0 && std::isfinite(c.rms_norm_eps),
               "0 or above");
  const double elements =
      1.0 * c.num_hidden_layers * c.hidden_size * (2.0 * heads * c.head_dim + 3.0 * c.intermediate_size);
  check_number("the number of weights", elements, elements < 0x1p58, "below 2^58");
  if (c.head_dim % 2 != 0)
    throw std::invalid_argument("head_dim " + std::to_string(c.head_dim) + " is odd; rope needs pairs");
  check_between("tap_size", c.tap_size, 0, kMostRows);
  check_between("logits_size", c.logits_size, 0, kMostIds);
  check_between("num_tap_norms", c.num_tap_norms, 0, std::max(c.tap_size / kLanes, 0));
  if (!c.is_head()) return;
  check_between("num_hidden_layers of a head", c.num_hidden_layers, 1, 1);
  const int part = c.tap_size / std::max(c.num_tap_norms, 1);
  if (c.hidden_size % kLanes != 0 || part % kLanes != 0 || c.tap_size % part != 0) {
    throw std::invalid_argument("hidden_size " + std::to_string(c.hidden_size) + " and the " +
                                std::to_string(part) + " numbers of a norm of taps must be multiples of 16");
  }
}

// Gives out consecutive, line-aligned ranges of a buffer that does not exist yet.
class Plan {
 public:
  int64_t take(int64_t bytes) {
    const int64_t offset = total_;
    total_ += round_up(bytes, kLine);
    return offset;
  }
  int64_t total() const { return total_; }

 private:
  int64_t total_ = 0;
};

std::string layer_name(int i) { return "model.layers." + std::to_string(i) + "."; }

// The tensors of a matrix, which are there while it is packed: those that are made no longer.
class Present {
 public:
  explicit Present(const Parts& parts) {
    for (const SourceTensor* part : parts) tensors_.push_back(present(*part));
  }
  Parts parts() const {
    Parts found;
    for (const auto& tensor : tensors_) found.push_back(tensor.get());
    return found;
  }

 private:
  std::vector<std::shared_ptr<const SourceTensor>> tensors_;
};

// The rows of some tensors, one below the other.
std::vector<SourceRow> rows_of(const Parts& parts, int bits) {
  std::vector<SourceRow> rows;
  for (const SourceTensor* tensor : parts) {
    for (int64_t i = 0; i < tensor->shape[0]; ++i) rows.push_back({tensor, i, bits});
  }
  return rows;
}

// Those of two tensors, 16 of each in turn.
std::vector<SourceRow> interleaved_rows(const Parts& parts, int bits) {
  std::vector<SourceRow> rows;
  const int64_t n = parts[0]->shape[0];
  for (int64_t first = 0; first < n; first += kLanes) {
    for (const SourceTensor* tensor : parts) {
      for (int64_t i = first; i < first + kLanes; ++i)
        rows.push_back(i < n ? SourceRow{tensor, i, bits} : SourceRow{});
    }
  }
  return rows;
}

constexpr const char* kHead = "lm_head.weight";

LlamaConfig config_of_view(const LlamaWeights& whole, const std::vector<int>& layers, int num_own,
                           int intermediate_size, const LlamaWeights::Tensors& tensors) {
  LlamaConfig config = whole.config();
  check_between("layers of its own", num_own, 0, kMostLayers / 2);
  check_between("layers that are shared", static_cast<int64_t>(layers.size()), 0, kMostLayers / 2);
  for (const int layer : layers) {
    if (layer >= 0 && layer < config.num_hidden_layers) continue;
    throw std::invalid_argument("layer " + std::to_string(layer) + " is not in [0, " +
                                std::to_string(config.num_hidden_layers) + ")");
  }
  config.num_hidden_layers = static_cast<int>(layers.size()) + num_own;
  config.intermediate_size = intermediate_size;
  if (const auto head = tensors.find(kHead); head != tensors.end() && head->second.shape.size() == 2) {
    config.logits_size = static_cast<int>(head->second.shape[0]);
  }
  return config;
}

}  // namespace

LlamaWeights::LlamaWeights(std::shared_ptr<const LlamaWeights> whole, const std::vector<int>& layers,
                           int num_own, int intermediate_size, const Tensors& tensors, int bits)
    : LlamaWeights(config_of_view(*whole, layers, num_own, intermediate_size, tensors), tensors,
                   whole->kernels(), bits, nullptr, whole, layers) {}

LlamaWeights::LlamaWeights(std::shared_ptr<const LlamaWeights> target, const LlamaConfig& config,
                           const Tensors& tensors, int bits)
    : LlamaWeights(config, tensors, target->kernels(), bits, nullptr,
                   tensors.contains("model.embed_tokens.weight") ? nullptr : target, {}) {
  if (whole_ == nullptr || (whole_->config_.hidden_size == config.hidden_size &&
                            whole_->config_.vocab_size == config.vocab_size)) {
    return;
  }
  throw std::invalid_argument("the head has no embedding of its own, and the target's is of " +
                              std::to_string(whole_->config_.vocab_size) + " rows of " +
                              std::to_string(whole_->config_.hidden_size));
}

LlamaWeights::LlamaWeights(const LlamaConfig& config, const Tensors& tensors, const Kernels& kernels,
                           int bits, const Progress& progress, std::shared_ptr<const LlamaWeights> whole,
                           const std::vector<int>& shared)
    : whole_(std::move(whole)), config_(config), kernels_(kernels) {
  check(config);
  const auto first = static_cast<int>(shared.size());  // of its own layers
  const bool has_own = first < config.num_hidden_layers;
  const LlamaConfig& c = config_;
  const DType dtype = kernels.dtype;
  const int64_t hidden = c.hidden_size, inter = c.intermediate_size, q = c.q_size(), kv = c.kv_size();
  const int64_t inputs = c.attention_inputs();
  const int head_bits = bits == 0 ? 0 : 8;

  struct LayerParts {
    Parts qkv, o, gate_up, down;
  };
  std::vector<LayerParts> layer_parts(first);
  for (int i = first; i < c.num_hidden_layers; ++i) {
    const auto part = [&](const char* name, int64_t n, int64_t k) {
      return &tensor_of(tensors, layer_name(i) + name + ".weight", {n, k});
    };
    layer_parts.push_back({{part("self_attn.q_proj", q, inputs), part("self_attn.k_proj", kv, inputs),
                            part("self_attn.v_proj", kv, inputs)},
                           {part("self_attn.o_proj", hidden, q)},
                           {part("mlp.gate_proj", inter, hidden), part("mlp.up_proj", inter, hidden)},
                           {part("mlp.down_proj", hidden, inter)}});
  }
  const bool is_view = whole_ != nullptr && !c.is_head();
  const auto wide = [&](const char* name, int64_t rows, bool is_here) {  // [rows, hidden]
    return is_here ? &tensor_of(tensors, name, {rows, hidden}) : nullptr;
  };
  const bool ties = c.tie_word_embeddings && !c.is_head();
  const SourceTensor* const embedding = wide("model.embed_tokens.weight", c.vocab_size, whole_ == nullptr);
  const bool has_head = !is_view || tensors.contains(kHead);
  const SourceTensor* const head = ties && !is_view ? embedding : wide(kHead, c.head_rows(), has_head);
  const SourceTensor* const fuse =
      c.is_head() ? &tensor_of(tensors, "fc.weight", {hidden, c.tap_size}) : nullptr;

  // Places, in the order in which a step reads them.
  Plan plan;
  const auto place = [&](int64_t n, int64_t k, const Parts& parts, int wanted) {
    PackedMatrix matrix = packed_shape(n, k, form_of(parts, wanted));
    matrix.offset = plan.take(matrix.bytes(dtype));
    return matrix;
  };
  for (const int layer : shared) layers_.push_back(whole_->layers_[layer]);
  layers_.resize(c.num_hidden_layers);
  for (int i = first; i < c.num_hidden_layers; ++i) {
    LayerWeights& layer = layers_[i];
    layer.qkv = place(q + 2 * kv, inputs, layer_parts[i].qkv, bits);
    layer.o = place(hidden, q, layer_parts[i].o, bits);
    layer.gate_up = place(2 * round_up(inter, kLanes), hidden, layer_parts[i].gate_up, bits);
    layer.down = place(hidden, inter, layer_parts[i].down, bits);
  }
  if (fuse != nullptr) fuse_ = place(hidden, c.tap_size, {fuse}, bits);
  lm_head_ = !has_head ? whole_->lm_head_ : place(c.head_rows(), hidden, {head}, head_bits);
  step_bytes_ = lm_head_.bytes(dtype) + (fuse != nullptr ? fuse_.bytes(dtype) : 0);
  for (const LayerWeights& layer : layers_) {
    for (const PackedMatrix* each : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      step_bytes_ += each->bytes(dtype);
    }
  }
  if (whole_ != nullptr) {
    // Embeddings are the whole's.
  } else if (!ties && form_of({embedding}, head_bits)) {
    embedding_ = place(c.vocab_size, hidden, {embedding}, head_bits);
  } else if (!ties) {
    embedding_offset_ = plan.take(int64_t{c.vocab_size} * hidden * size_of(dtype));
  }
  const auto vector_bytes = [](int64_t n) { return round_up(n * 4, kLine); };
  const int64_t per_layer =
      2 * vector_bytes(hidden) + vector_bytes(q + 2 * kv) + 2 * vector_bytes(c.head_dim) +
      (c.output_bias ? vector_bytes(hidden) : 0) +
      (c.mlp_bias ? vector_bytes(hidden) + vector_bytes(2 * round_up(inter, kLanes)) : 0);
  const int64_t norm_size = c.tap_size / std::max(c.num_tap_norms, 1);
  const int64_t of_head = c.is_head() ? vector_bytes(hidden) + c.num_tap_norms * vector_bytes(norm_size) : 0;
  int64_t vectors = plan.take((c.num_hidden_layers - first) * per_layer + vector_bytes(hidden) + of_head);
  if (has_own || has_head) buffer_ = HugeBuffer(plan.total(), "the packed model");
  const auto lies_here = [&](PackedMatrix* matrix) { matrix->buffer = buffer_.as<char>(); };
  for (int i = first; i < c.num_hidden_layers; ++i) {
    for (PackedMatrix* each : {&layers_[i].qkv, &layers_[i].o, &layers_[i].gate_up, &layers_[i].down}) {
      lies_here(each);
    }
  }
  if (has_head) lies_here(&lm_head_);
  lies_here(&embedding_);
  lies_here(&fuse_);
  in_memory_ = step_bytes_ + step_bytes_ / 4 >
               last_level_cache_bytes();  // a quarter is left to the KV cache and others

  RowReader reader;
  const auto read_vector = [&](const std::string& name, int64_t n, float* out) {
    reader.read(*present(tensor_of(tensors, name, {n})), 0, 1, n, DType::kFloat32, out, n);
  };
  const auto take_vector = [&](const std::string& name, int64_t n) {
    float* out = buffer_.as<float>(vectors);
    vectors += vector_bytes(n);
    read_vector(name, n, out);
    return out;
  };
  using Arrange = std::vector<SourceRow> (*)(const Parts&, int);
  const auto pack = [&](const PackedMatrix& matrix, const Parts& parts, int own_bits, int64_t source_k,
                        Arrange arrange = rows_of) {
    const Present there(parts);
    std::vector<SourceRow> rows = arrange(there.parts(), own_bits);
    rows.resize(int64_t{matrix.num_blocks} * kLanes);
    in_parallel(matrix.num_blocks, [&](int first, int last) {
      pack_blocks(matrix, rows, source_k, dtype, first, last, buffer_.as<char>());
    });
  };

  for (int i = first; i < c.num_hidden_layers; ++i) {
    LayerWeights& layer = layers_[i];
    const LayerParts& parts = layer_parts[i];
    const std::string prefix = layer_name(i), attention = prefix + "self_attn.";
    pack(layer.qkv, parts.qkv, bits, inputs);
    pack(layer.o, parts.o, bits, q);
    pack(layer.gate_up, parts.gate_up, bits, hidden, interleaved_rows);
    pack(layer.down, parts.down, bits, inter);
    layer.input_norm = take_vector(prefix + "input_layernorm.weight", hidden);
    layer.post_attention_norm = take_vector(prefix + "post_attention_layernorm.weight", hidden);
    layer.qkv_bias = layer.q_norm = layer.k_norm = nullptr;
    if (c.attention_bias) {
      float* bias = buffer_.as<float>(vectors);
      vectors += vector_bytes(q + 2 * kv);
      read_vector(attention + "q_proj.bias", q, bias);
      read_vector(attention + "k_proj.bias", kv, bias + q);
      read_vector(attention + "v_proj.bias", kv, bias + q + kv);
      layer.qkv_bias = bias;
    }
    layer.o_bias = c.output_bias ? take_vector(attention + "o_proj.bias", hidden) : nullptr;
    layer.down_bias = c.mlp_bias ? take_vector(prefix + "mlp.down_proj.bias", hidden) : nullptr;
    layer.gate_up_bias = nullptr;
    if (c.mlp_bias) {
      float* bias = buffer_.as<float>(vectors);
      vectors += vector_bytes(2 * round_up(inter, kLanes));
      std::vector<float> one(inter);
      for (const int odd : {0, 1}) {
        read_vector(prefix + (odd ? "mlp.up_proj.bias" : "mlp.gate_proj.bias"), inter, one.data());
        for (int64_t i = 0; i < inter; ++i) {
          bias[(2 * (i / kLanes) + odd) * kLanes + i % kLanes] = one[i];
        }
      }
      layer.gate_up_bias = bias;
    }
    if (c.qk_norm) {
      layer.q_norm = take_vector(attention + "q_norm.weight", c.head_dim);
      layer.k_norm = take_vector(attention + "k_norm.weight", c.head_dim);
    }
    if (progress) progress(i + 1, c.num_hidden_layers);
  }

  final_norm_ = has_own || !is_view ? take_vector("model.norm.weight", hidden) : whole_->final_norm_;
  if (has_head) pack(lm_head_, {head}, head_bits, hidden);
  if (is_view) {
    config_.intermediate_size = std::max(config_.intermediate_size, whole_->config_.intermediate_size);
    return;
  }
  if (fuse != nullptr) {
    pack(fuse_, {fuse}, bits, c.tap_size);
    hidden_norm_ = take_vector(layer_name(0) + "hidden_norm.weight", hidden);
    for (int i = 0; i < c.num_tap_norms; ++i) {
      tap_norms_.push_back(take_vector("tap_norms." + std::to_string(i) + ".weight", norm_size));
    }
  }
  if (embedding_.form) pack(embedding_, {embedding}, head_bits, hidden);
  if (embedding_offset_ >= 0) {
    const auto there = present(*embedding);
    char* out = buffer_.as<char>(embedding_offset_);
    in_parallel(c.vocab_size, [&](int first, int last) {
      RowReader own;
      for (int64_t i = first; i < last; i += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, last - i);
        own.read(*there, i, count, hidden, dtype, out + i * hidden * size_of(dtype), hidden);
      }
    });
  }
}

void LlamaWeights::embed(int token_id, float* out) const {
  if (whole_ != nullptr) return whole_->embed(token_id, out);
  const int hidden = config_.hidden_size;
  if (embedding_offset_ < 0) {
    const PackedMatrix& matrix = embedding_.form ? embedding_ : lm_head_;
    return unpack_row(matrix, dtype(), matrix.buffer, token_id, hidden, out);
  }
  const int64_t first = int64_t{token_id} * hidden;
  const void* rows = buffer_.as<char>(embedding_offset_);
  const auto type =
      dtype() == DType::kBfloat16 ? SourceTensor::Type::kBfloat16 : SourceTensor::Type::kFloat32;
  for (int i = 0; i < hidden; ++i) out[i] = element_of(type, rows, first + i);
}

}  // namespace pearl
