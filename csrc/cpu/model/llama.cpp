#include "cpu/model/llama.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/checks.h"

namespace pearl {
namespace {

constexpr int kMostRepeats = 1 << 16;  // of a measurement
constexpr int kOwnRows =
    4;  // a power of two: so many rows each thread makes codes of itself, which is cheaper than a barrier
constexpr int kStepRows = 128;  // of one pass over the weights: a prefill reads them once for so many tokens

// Row length in elements of an activation buffer: an odd number of cache lines, so that 16 rows fall into
// different sets of the first-level cache.
int64_t padded_stride(int64_t n, int64_t element_bytes) {
  const int64_t lines = round_up(round_up(n, kDepthAlign) * element_bytes, 64) / 64;
  return (lines | 1) * 64 / element_bytes;
}

void refuse(int segment, const std::string& what) {
  throw std::invalid_argument("segment " + std::to_string(segment) + ": " + what);
}

// Bytes from row to row of codes: an odd number of cache lines, as above.
int64_t codes_stride(const GroupedRow& row) { return (round_up(row.bytes(), 64) / 64 | 1) * 64; }

// The longest row of codes that a matrix of the model needs; 0 without one.
int64_t widest_codes(const LlamaWeights& weights) {
  int64_t widest = 0;
  const auto see = [&](const PackedMatrix& matrix) {
    if (matrix.form) widest = std::max(widest, codes_stride({matrix.k, matrix.form->group}));
  };
  for (const LayerWeights& layer : weights.layers()) {
    for (const PackedMatrix* each : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) see(*each);
  }
  see(weights.lm_head());
  return widest;
}

int checked_slots(int num_slots) {
  check_between("num_slots", num_slots, 1, kMostSlots);
  return num_slots;
}

int64_t checked_length(int64_t max_model_len) {
  check_between("max_model_len", max_model_len, 1, kMostTokens);  // positions are int inside a matmul
  return max_model_len;
}

// Blocks of a pool in which every slot has its own.
int whole_slots(int64_t num_slots, int64_t max_model_len, int block_size) {
  const int64_t blocks = BlockPool::blocks_of_slots(num_slots, max_model_len, block_size);
  return static_cast<int>(std::min<int64_t>(blocks, std::numeric_limits<int>::max()));
}

}  // namespace

LlamaExecutor::LlamaExecutor(std::shared_ptr<const LlamaWeights> weights, std::shared_ptr<CoreSet> core_set,
                             int num_slots, int64_t max_model_len, const float* cos, const float* sin,
                             std::optional<int> num_blocks, std::optional<int> block_size)
    : weights_(std::move(weights)),
      core_set_(std::move(core_set)),
      num_slots_(checked_slots(num_slots)),
      max_model_len_(checked_length(max_model_len)),
      cache_(weights_->config(), weights_->dtype(),
             num_blocks.value_or(whole_slots(num_slots, max_model_len,
                                             block_size.value_or(BlockPool::size_for(max_model_len)))),
             block_size.value_or(BlockPool::size_for(max_model_len))) {
  const int64_t per_slot = (max_model_len + cache_.block_size() - 1) / cache_.block_size();
  check_memory(4.0 * num_slots * static_cast<double>(per_slot),
               "the block table of " + std::to_string(num_slots) + " slots");
  own_blocks_.resize(num_slots * per_slot);
  std::iota(own_blocks_.begin(), own_blocks_.end(), 0);
  const LlamaConfig& c = weights_->config();
  const DType dtype = weights_->dtype();
  const int64_t table = max_model_len * (c.head_dim / 2);
  cos_.assign(cos, cos + table);
  sin_.assign(sin, sin + table);

  int64_t total = 0;
  const auto place = [&](int64_t columns, int64_t element_bytes) {
    const Rows rows{reinterpret_cast<void*>(total), padded_stride(columns, element_bytes)};
    total += kStepRows * rows.stride * element_bytes;
    return rows;
  };
  const int64_t element = size_of(dtype);
  residual_ = place(c.hidden_size, 4);
  qkv_ = place(c.q_size() + 2 * c.kv_size(), 4);
  normed_ = place(c.hidden_size, element);
  attended_ = place(c.q_size(), element);
  activated_ = place(c.intermediate_size, element);
  const int64_t queries = total;
  total += round_up(int64_t{kStepRows} * c.q_size() * element, 64);
  const int64_t codes = total, codes_bytes = widest_codes(*weights_);
  total += kStepRows * codes_bytes;
  buffer_ = HugeBuffer(total, "the buffers of a step");
  for (Rows* rows : {&residual_, &qkv_, &normed_, &attended_, &activated_}) {
    rows->data = buffer_.as<char>(reinterpret_cast<int64_t>(rows->data));
  }
  queries_ = buffer_.as<char>(queries);
  codes_ = buffer_.as<char>(codes);
  for (int i = 0; i < core_set_->size(); ++i) {
    workers_.push_back({AttentionScratch(c, dtype, max_model_len),
                        HugeBuffer(kTileRows * normed_.stride * element, "the buffers of a step"),
                        HugeBuffer(kOwnRows * codes_bytes, "the buffers of a step")});
  }
}

void LlamaExecutor::check(const Segment* segments, int num_segments) const {
  std::vector<bool> taken(num_slots());
  for (int i = 0; i < num_segments; ++i) {
    const Segment& s = segments[i];
    if (s.slot < 0 || s.slot >= num_slots()) {
      refuse(i, "slot " + std::to_string(s.slot) + " is not in [0, " + std::to_string(num_slots()) + ")");
    }
    if (taken[s.slot]) refuse(i, "slot " + std::to_string(s.slot) + " is in this call twice");
    taken[s.slot] = true;
    if (s.num_tokens < 1) refuse(i, "num_tokens is " + std::to_string(s.num_tokens) + "; it is at least 1");
    const int64_t end = std::min(s.start, std::numeric_limits<int64_t>::max() - s.num_tokens) + s.num_tokens;
    if (s.start < 0 || s.start > max_model_len() - s.num_tokens) {
      refuse(i, "positions [" + std::to_string(s.start) + ", " + std::to_string(end) +
                    ") are not within max_model_len " + std::to_string(max_model_len()));
    }
    if (s.num_logits < 0 || s.num_logits > s.num_tokens) {
      refuse(i, "num_logits " + std::to_string(s.num_logits) + " is not in [0, " +
                    std::to_string(s.num_tokens) + "]");
    }
    for (int t = 0; t < s.num_tokens; ++t) {
      if (s.token_ids[t] < 0 || s.token_ids[t] >= vocab_size()) {
        refuse(i, "token id " + std::to_string(s.token_ids[t]) + " at position " +
                      std::to_string(s.start + t) + " is not in [0, " + std::to_string(vocab_size()) + ")");
      }
    }
    check_blocks(s, i);
  }
}

// The blocks that a segment reads and writes: those of positions below start + num_tokens.
void LlamaExecutor::check_blocks(const Segment& s, int index) const {
  const int64_t end = s.start + s.num_tokens, size = block_size(), needed = (end + size - 1) / size;
  if (s.block_table != nullptr && s.num_blocks < needed) {
    refuse(index, "its block table has " + std::to_string(s.num_blocks) + " blocks of " +
                      std::to_string(size) + "; positions up to " + std::to_string(end) + " need " +
                      std::to_string(needed));
  }
  const int32_t* table = block_table(s);
  for (int64_t b = 0; b < needed; ++b) {
    if (table[b] >= 0 && table[b] < num_blocks()) continue;
    refuse(index, s.block_table != nullptr
                      ? "block " + std::to_string(b) + " of its table is " + std::to_string(table[b]) +
                            ", which is not in [0, " + std::to_string(num_blocks()) + ")"
                      : "slot " + std::to_string(s.slot) + " has no " + std::to_string(needed) +
                            " blocks of its own in a pool of " + std::to_string(num_blocks()) +
                            "; give it a block table");
  }
}

const int32_t* LlamaExecutor::block_table(const Segment& s) const {
  if (s.block_table != nullptr) return s.block_table;
  return own_blocks_.data() + s.slot * (own_blocks_.size() / num_slots_);
}

void LlamaExecutor::forward(const Segment* segments, int num_segments) {
  const OneThread one_thread(&busy_);
  check(segments, num_segments);
  pieces_.clear();
  token_rows_.clear();
  for (int i = 0; i < num_segments; ++i) {
    const Segment& s = segments[i];
    for (int done = 0; done < s.num_tokens;) {
      const int used = static_cast<int>(token_rows_.size());
      const int take = std::min(s.num_tokens - done, kStepRows - used);
      pieces_.push_back({block_table(s), used, take, s.start + done});
      for (int t = done; t < done + take; ++t) {
        const int wanted = t - (s.num_tokens - s.num_logits);
        token_rows_.push_back(
            {s.token_ids[t], wanted < 0 ? nullptr : s.logits + int64_t{wanted} * vocab_size()});
      }
      done += take;
      if (used + take == kStepRows) run_step();
    }
  }
  if (!token_rows_.empty()) run_step();
}

void LlamaExecutor::run_step(bool is_whole) {
  wanted_rows_.clear();
  logits_rows_.clear();
  for (size_t row = 0; row < token_rows_.size(); ++row) {
    if (token_rows_[row].logits == nullptr) continue;
    wanted_rows_.push_back(static_cast<int>(row));
    logits_rows_.push_back(token_rows_[row].logits);
  }
  core_set_->run([&](int index) { step(index, is_whole); });
  pieces_.clear();
  token_rows_.clear();
}

void LlamaExecutor::share_of(const PackedMatrix& matrix, int index, int* first, int* count) const {
  const int64_t pairs = (matrix.num_blocks + 1) / 2,
                n = core_set_->size();  // a gate block and its up block together
  const int begin = static_cast<int>(2 * (pairs * index / n));
  const int end = std::min(matrix.num_blocks, static_cast<int>(2 * (pairs * (index + 1) / n)));
  *first = begin;
  *count = end - begin;
}

const void* LlamaExecutor::start_of_share(const PackedMatrix& matrix, int index) const {
  int first, count;
  share_of(matrix, index, &first, &count);
  return static_cast<const char*>(weights_->data(matrix)) + first * matrix.block_bytes(weights_->dtype());
}

void LlamaExecutor::apply(const Linear& linear, int rows, int index) {
  const int64_t element = size_of(weights_->dtype());
  int first, count;
  share_of(linear.matrix, index, &first, &count);
  if (count == 0 && !linear.matrix.form) return;
  MatmulArgs a{};
  a.from_memory = weights_->in_memory();
  if (linear.next) {
    a.next_w = start_of_share(*linear.next, index);
    a.next_w_stride = linear.next->block_bytes(weights_->dtype()) / element;
  }
  a.x = linear.x.data;
  a.x_stride = linear.x.stride;
  a.rows = rows;
  a.w = start_of_share(linear.matrix, index);
  a.w_stride = linear.matrix.block_stride();
  a.k = linear.matrix.k;
  a.num_blocks = count;
  a.num_cols = linear.matrix.n - first * kLanes;
  a.epilogue = linear.epilogue;
  a.bias = linear.bias ? linear.bias + first * kLanes : nullptr;
  const int64_t out_bytes =
      linear.epilogue == Epilogue::kSiluMul ? kLanes / 2 * element : kLanes * int64_t{4};
  a.out = linear.out_rows ? nullptr : static_cast<char*>(linear.out.data) + first * out_bytes;
  a.out_stride = linear.out.stride;
  a.out_rows = linear.out_rows;
  a.out_column = first * kLanes;
  if (linear.matrix.form) {
    apply_grouped(linear, rows, index, a);
  } else {
    weights_->kernels().matmul(a);
  }
}

// The rows of linear.x become codes first: of a few rows by each thread for itself, else together.
void LlamaExecutor::apply_grouped(const Linear& linear, int rows, int index, const MatmulArgs& out) {
  const GroupForm& form = *linear.matrix.form;
  const GroupedRow row{linear.matrix.k, form.group};
  const bool alone = rows <= kOwnRows;
  const int64_t stride = codes_stride(row), element = size_of(weights_->dtype());
  char* codes = alone ? workers_[index].codes.as<char>() : codes_;
  const Kernels& kernels = weights_->kernels();
  for (int m = alone ? 0 : index; m < rows; m += alone ? 1 : core_set_->size()) {
    const char* x = static_cast<const char*>(linear.x.data) + m * linear.x.stride * element;
    kernels.quantize_row(x, linear.matrix.inputs, row, codes + m * stride);
  }
  if (!alone) core_set_->barrier();
  if (out.num_blocks == 0) return;
  kernels.grouped_matmul({form, codes, stride, static_cast<const char*>(out.w), out});
}

// RMSNorm of every row of the step: each thread for itself if there is one row, together otherwise.
LlamaExecutor::Rows LlamaExecutor::norm(const float* weight, int index) {
  const LlamaConfig& c = weights_->config();
  const int64_t element = size_of(weights_->dtype());
  const int rows = static_cast<int>(token_rows_.size()), threads = core_set_->size();
  const bool alone = rows == 1;
  const Rows out = alone ? Rows{workers_[index].normed.as<void>(), normed_.stride} : normed_;
  for (int row = alone ? 0 : index; row < rows; row += threads) {
    weights_->kernels().rms_norm(static_cast<const float*>(residual_.data) + row * residual_.stride, weight,
                                 c.hidden_size, c.rms_norm_eps,
                                 static_cast<char*>(out.data) + row * out.stride * element);
  }
  if (!alone) core_set_->barrier();
  return out;
}

// Attention of layer i for every row of the step, from qkv_ to attended_.
void LlamaExecutor::attend_rows(int i, int index) {
  const LayerWeights& layer = weights_->layers()[i];
  const AttentionStep attention{weights_->config(),
                                weights_->kernels(),
                                cache_,
                                weights_->in_memory(),
                                start_of_share(layer.o, index),
                                layer.o.block_bytes(weights_->dtype()) / size_of(weights_->dtype()),
                                i,
                                pieces_.data(),
                                static_cast<int>(pieces_.size()),
                                kStepRows,
                                cos_.data(),
                                sin_.data(),
                                layer.q_norm,
                                layer.k_norm,
                                static_cast<const float*>(qkv_.data),
                                qkv_.stride,
                                queries_,
                                attended_.data,
                                attended_.stride};
  rope_and_store(attention, workers_[index].attention, index, core_set_->size());
  core_set_->barrier();
  attend(attention, workers_[index].attention, index, core_set_->size());
  core_set_->barrier();
}

void LlamaExecutor::step(int index, bool is_whole) {
  const LlamaConfig& c = weights_->config();
  const Kernels& kernels = weights_->kernels();
  const int rows = static_cast<int>(token_rows_.size()), threads = core_set_->size();
  const std::vector<LayerWeights>& layers = weights_->layers();
  if (kernels.prepare_thread) kernels.prepare_thread();

  float* residual = static_cast<float*>(residual_.data);
  for (int row = index; is_whole && row < rows; row += threads) {
    weights_->embed(token_rows_[row].token_id, residual + row * residual_.stride);
  }
  core_set_->barrier();

  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const LayerWeights& layer = layers[i];
    const PackedMatrix& after = i + 1 < c.num_hidden_layers ? layers[i + 1].qkv : weights_->lm_head();

    const Rows x = is_whole ? norm(layer.input_norm, index) : normed_;
    apply({layer.qkv, x, Epilogue::kStore, qkv_, layer.qkv_bias, nullptr, &layer.o}, rows, index);
    core_set_->barrier();

    if (is_whole) attend_rows(i, index);
    apply({layer.o, attended_, Epilogue::kAdd, residual_, nullptr, nullptr, &layer.gate_up}, rows, index);
    core_set_->barrier();

    const Rows y = is_whole ? norm(layer.post_attention_norm, index) : normed_;
    apply({layer.gate_up, y, Epilogue::kSiluMul, activated_, nullptr, nullptr, &layer.down}, rows, index);
    core_set_->barrier();
    apply({layer.down, activated_, Epilogue::kAdd, residual_, nullptr, nullptr, &after}, rows, index);
    core_set_->barrier();
  }

  const int wanted = static_cast<int>(wanted_rows_.size());
  if (wanted == 0) return;
  const int64_t element = size_of(weights_->dtype());
  for (int i = index; is_whole && i < wanted; i += threads) {
    kernels.rms_norm(residual + wanted_rows_[i] * residual_.stride, weights_->final_norm(), c.hidden_size,
                     c.rms_norm_eps, static_cast<char*>(normed_.data) + i * normed_.stride * element);
  }
  core_set_->barrier();
  apply({weights_->lm_head(), normed_, Epilogue::kStore, {}, nullptr, logits_rows_.data(), &layers[0].qkv},
        wanted, index);
}

double LlamaExecutor::time_linears(int rows, int repeats) {
  check_between("rows", rows, 1, kStepRows);
  check_between("repeats", repeats, 1, kMostRepeats);
  const OneThread one_thread(&busy_);
  std::vector<float> logits(int64_t{rows} * vocab_size());
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    for (int row = 0; row < rows; ++row) {
      token_rows_.push_back({0, logits.data() + int64_t{row} * vocab_size()});
    }
    const auto begin = std::chrono::steady_clock::now();
    run_step(false);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace pearl
