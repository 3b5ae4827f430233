#include "cpu/model/llama_step.h"

#include <algorithm>
#include <cstring>

namespace pearl {
namespace {

constexpr int kOwnRows = 4;  // so many rows each worker makes codes of itself, which is cheaper than a phase
// Weights that an item reads, and the fewest items of a worker's range: a thread that lost its core holds up
// one. Of weights in the last-level cache, whose phases last some microseconds anyway, each further item
// costs.
constexpr int64_t kItemBytes = 128 << 10, kItemBytesInCache = 1 << 20;
constexpr int kFewestItems = 4, kFewestItemsInCache = 1, kMostItems = 16;

// Row length in elements of an activation buffer: an odd number of cache lines, so that 16 rows fall into
// different sets of the first-level cache.
int64_t padded_stride(int64_t n, int64_t element_bytes) {
  const int64_t lines = round_up(round_up(n, kDepthAlign) * element_bytes, 64) / 64;
  return (lines | 1) * 64 / element_bytes;
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
  see(weights.fuse());
  return widest;
}

// Where item i of `count` begins among `total`.
int part(int64_t total, int i, int count) { return static_cast<int>(total * i / count); }

}  // namespace

LlamaStep::LlamaStep(const LlamaWeights& weights, const CoreSet& core_set, const KvCache& cache,
                     int64_t max_model_len, const float* cos, const float* sin)
    : weights_(weights), core_set_(core_set), cache_(cache), cos_(cos), sin_(sin) {
  const LlamaConfig& c = weights_.config();
  const DType dtype = weights_.dtype();
  int64_t total = 0;
  const auto place = [&](int64_t columns, int64_t element_bytes) {
    const Rows rows{reinterpret_cast<void*>(total), padded_stride(columns, element_bytes)};
    total += kMostRows * rows.stride * element_bytes;
    return rows;
  };
  const int64_t element = size_of(dtype);
  residual_ = place(c.hidden_size, 4);
  qkv_ = place(c.q_size() + 2 * c.kv_size(), 4);
  normed_ = place(c.attention_inputs(), element);
  attended_ = place(c.q_size(), element);
  activated_ = place(c.intermediate_size, element);
  taps_ = place(c.tap_size, element);
  embedded_ = place(c.is_head() ? c.hidden_size : 0, 4);
  const int64_t queries = total;
  total += round_up(int64_t{kMostRows} * c.q_size() * size_of(weights_.kernels().query_dtype), 64);
  const int64_t codes = total, codes_bytes = widest_codes(weights_);
  total += kMostRows * codes_bytes;
  buffer_ = HugeBuffer(total, "the buffers of a step");
  for (Rows* rows : {&residual_, &qkv_, &normed_, &attended_, &activated_, &taps_, &embedded_}) {
    rows->data = buffer_.as<char>(reinterpret_cast<int64_t>(rows->data));
  }
  queries_ = buffer_.as<char>(queries);
  codes_ = buffer_.as<char>(codes);
  for (int i = 0; i < core_set_.size(); ++i) {
    workers_.push_back({AttentionScratch(c, weights_.kernels().query_dtype, max_model_len),
                        HugeBuffer(kTileRows * normed_.stride * element, "the buffers of a step"),
                        HugeBuffer(kOwnRows * codes_bytes, "the buffers of a step")});
  }
}

int LlamaStep::row_items(int rows) const { return std::min(rows, 4 * core_set_.size()); }

int LlamaStep::matrix_items(const PackedMatrix& matrix, int rows) const {
  const int size = core_set_.size();
  if (size == 1) return 1;
  const int pairs = (matrix.num_blocks + 1) / 2;  // a gate block and its up block together
  const int64_t work = matrix.bytes(weights_.dtype()) / size * (1 + rows / 8);
  const bool in_memory = weights_.in_memory();
  const int64_t wanted = work / (in_memory ? kItemBytes : kItemBytesInCache);
  const int fewest = in_memory ? kFewestItems : kFewestItemsInCache;
  const auto of_worker = static_cast<int>(std::clamp<int64_t>(wanted, fewest, kMostItems));
  return std::min({pairs, size * of_worker, CoreSet::kMostItems});
}

void LlamaStep::add_linear(int layer, const Linear& linear, int rows, const float* norm,
                           const int* row_numbers) {
  const bool own_norm = norm != nullptr && rows == 1, own_codes = rows <= kOwnRows;
  if (norm != nullptr && !own_norm) {
    phases_.push_back({Kind::kNorm, row_items(rows), rows, layer, norm, row_numbers, false, linear});
  }
  if (linear.matrix->form && !own_codes) {
    phases_.push_back({Kind::kCodes, row_items(rows), rows, layer, nullptr, nullptr, false, linear});
  }
  phases_.push_back({Kind::kLinear, matrix_items(*linear.matrix, rows), rows, layer,
                     own_norm ? norm : nullptr, row_numbers, own_codes, linear});
}

void LlamaStep::add_attention(int layer) {
  const int rows = static_cast<int>(token_rows.size());
  const auto add = [&](Kind kind, const std::vector<AttentionItem>& items) {
    phases_.push_back({kind, static_cast<int>(items.size()), rows, layer, nullptr, nullptr, false, {}});
  };
  if (items_.is_joint) return add(Kind::kRopeAndAttend, items_.attend);
  add(Kind::kRope, items_.rope);
  add(Kind::kAttend, items_.attend);
}

void LlamaStep::plan(bool is_whole) {
  first_serial_ += phases_.size();
  phases_.clear();
  wanted_rows_.clear();
  logits_rows_.clear();
  const int rows = static_cast<int>(token_rows.size());
  for (int row = 0; row < rows; ++row) {
    if (token_rows[row].logits == nullptr) continue;
    wanted_rows_.push_back(row);
    logits_rows_.push_back(token_rows[row].logits);
  }
  const LlamaConfig& c = weights_.config();
  const std::vector<LayerWeights>& layers = weights_.layers();
  if (is_whole) items_.plan(pieces, c, core_set_.size());
  if (is_whole && c.is_head()) add_head_inputs();
  if (is_whole && !c.is_head()) add_rows(Kind::kEmbed, rows);
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const LayerWeights& layer = layers[i];
    const PackedMatrix& after = i + 1 < c.num_hidden_layers ? layers[i + 1].qkv : weights_.lm_head();
    if (is_whole) add_tap(i);
    add_linear(i, {&layer.qkv, normed_, Epilogue::kStore, qkv_, layer.qkv_bias, nullptr, &layer.o}, rows,
               is_whole && !c.is_head() ? layer.input_norm : nullptr, nullptr);
    if (is_whole) add_attention(i);
    add_linear(i, {&layer.o, attended_, Epilogue::kAdd, residual_, layer.o_bias, nullptr, &layer.gate_up},
               rows, nullptr, nullptr);
    add_linear(
        i,
        {&layer.gate_up, normed_, Epilogue::kSiluMul, activated_, layer.gate_up_bias, nullptr, &layer.down},
        rows, is_whole ? layer.post_attention_norm : nullptr, nullptr);
    add_linear(i, {&layer.down, activated_, Epilogue::kAdd, residual_, layer.down_bias, nullptr, &after},
               rows, nullptr, nullptr);
  }
  if (is_whole) add_tap(c.num_hidden_layers);
  if (is_whole && c.is_head()) add_rows(Kind::kOutput, rows);
  const int wanted = static_cast<int>(wanted_rows_.size());
  if (wanted == 0) return;
  add_linear(
      0, {&weights_.lm_head(), normed_, Epilogue::kStore, {}, nullptr, logits_rows_.data(), &layers[0].qkv},
      wanted, is_whole ? weights_.final_norm() : nullptr, wanted_rows_.data());
}

void LlamaStep::add_tap(int layer) {
  const auto found = std::find(tap_layers.begin(), tap_layers.end(), layer);
  const bool is_wanted = std::any_of(token_rows.begin(), token_rows.end(),
                                     [](const TokenRow& row) { return row.taps != nullptr; });
  if (found == tap_layers.end() || !is_wanted) return;
  add_rows(Kind::kTap, static_cast<int>(token_rows.size()), static_cast<int>(found - tap_layers.begin()));
}

void LlamaStep::add_head_inputs() {
  fused_rows_.clear();
  fused_.clear();
  const int rows = static_cast<int>(token_rows.size());
  for (int row = 0; row < rows; ++row) {
    if (token_rows[row].features == nullptr) continue;
    fused_rows_.push_back(row);
    fused_.push_back(residual(row));
  }
  if (const int fused = static_cast<int>(fused_rows_.size()); fused > 0) {
    add_rows(Kind::kTaps, fused);
    add_linear(
        0, {&weights_.fuse(), taps_, Epilogue::kStore, {}, nullptr, fused_.data(), &weights_.layers()[0].qkv},
        fused, nullptr, nullptr);
  }
  add_rows(Kind::kFeature, rows);
}

void LlamaStep::widen(const void* elements, float* out) const {
  const auto type =
      weights_.dtype() == DType::kBfloat16 ? SourceTensor::Type::kBfloat16 : SourceTensor::Type::kFloat32;
  for (int i = 0; i < weights_.config().hidden_size; ++i) out[i] = element_of(type, elements, i);
}

// Row `row` of those that are fed taps.
void LlamaStep::take_taps(int row) {
  const LlamaConfig& c = weights_.config();
  const float* const taps = token_rows[fused_rows_[row]].features;
  char* const out = elements(taps_, row);
  if (c.num_tap_norms == 0) return weights_.kernels().convert(taps, 1.0f, c.tap_size, out);
  const int part = c.tap_size / c.num_tap_norms;
  for (int i = 0; i < c.num_tap_norms; ++i) {
    weights_.kernels().rms_norm(taps + i * part, weights_.tap_norm(i), part, c.rms_norm_eps,
                                out + i * part * size_of(weights_.dtype()));
  }
}

void LlamaStep::take_feature(int row) {
  const LlamaConfig& c = weights_.config();
  const TokenRow& token = token_rows[row];
  float* const embedded = static_cast<float*>(embedded_.data) + row * embedded_.stride;
  if (token.features == nullptr) std::memcpy(residual(row), token.own, c.hidden_size * sizeof(float));
  weights_.embed(token.token_id, embedded);
  char* const normed = elements(normed_, row);
  char* const feature = normed + c.hidden_size * size_of(weights_.dtype());
  weights_.kernels().rms_norm(embedded, weights_.layers()[0].input_norm, c.hidden_size, c.rms_norm_eps,
                              normed);
  weights_.kernels().rms_norm(residual(row), weights_.hidden_norm(), c.hidden_size, c.rms_norm_eps, feature);
  if (c.norm_before_residual) widen(feature, residual(row));
}

void LlamaStep::give_output(int row) {
  const LlamaConfig& c = weights_.config();
  float* const out = token_rows[row].output;
  if (out == nullptr) return;
  if (!c.norm_output) {
    std::memcpy(out, residual(row), c.hidden_size * sizeof(float));
    return;
  }
  char* const normed = elements(normed_, row);  // which nothing reads any more
  weights_.kernels().rms_norm(residual(row), weights_.final_norm(), c.hidden_size, c.rms_norm_eps, normed);
  widen(normed, out);
}

int LlamaStep::begin(int phase) {
  return phase < static_cast<int>(phases_.size()) ? phases_[phase].count : -1;
}

const void* LlamaStep::blocks_from(const PackedMatrix& matrix, int first) const {
  return static_cast<const char*>(weights_.data(matrix)) + first * matrix.block_bytes(weights_.dtype());
}

const void* LlamaStep::start_of_share(const PackedMatrix& matrix, int worker) const {
  return blocks_from(matrix, 2 * part((matrix.num_blocks + 1) / 2, worker, core_set_.size()));
}

void LlamaStep::norm_row(const Phase& phase, int row, void* out) const {
  const LlamaConfig& c = weights_.config();
  const int from = phase.row_numbers ? phase.row_numbers[row] : row;
  const float* x = static_cast<const float*>(residual_.data) + from * residual_.stride;
  weights_.kernels().rms_norm(x, phase.norm, c.hidden_size, c.rms_norm_eps, out);
}

void LlamaStep::make_codes(const Linear& linear, int row, char* out) const {
  const GroupedRow form{linear.matrix->k, linear.matrix->form->group};
  const char* x = static_cast<const char*>(linear.x.data) + row * linear.x.stride * size_of(weights_.dtype());
  weights_.kernels().quantize_row(x, linear.matrix->inputs, form, out + row * codes_stride(form));
}

// A linear layer over the item's columns. is_first: this worker's first item of the phase.
void LlamaStep::apply(const Phase& phase, int item, int worker, bool is_first) {
  Linear linear = phase.linear;
  const PackedMatrix& matrix = *linear.matrix;
  Worker& own = workers_[worker];
  if (phase.norm != nullptr) {
    linear.x.data = own.normed.as<void>();
    if (is_first) norm_row(phase, 0, linear.x.data);
  }
  char* codes = phase.own_codes ? own.codes.as<char>() : codes_;
  for (int row = 0; matrix.form && phase.own_codes && is_first && row < phase.rows; ++row) {
    make_codes(linear, row, codes);
  }

  const int64_t element = size_of(weights_.dtype()), block_bytes = matrix.block_bytes(weights_.dtype());
  const int pairs = (matrix.num_blocks + 1) / 2;
  const int first = 2 * part(pairs, item, phase.count);
  const int end = std::min(matrix.num_blocks, 2 * part(pairs, item + 1, phase.count));
  MatmulArgs a{};
  a.from_memory = weights_.in_memory();
  if (item + 1 < core_set_.first_item(phase.count, worker + 1)) {  // else it was another's, or is the last
    a.next_w = blocks_from(matrix, end);
    a.next_w_stride = block_bytes / element;
  } else if (linear.next) {
    a.next_w = start_of_share(*linear.next, worker);
    a.next_w_stride = linear.next->block_bytes(weights_.dtype()) / element;
  }
  a.x = linear.x.data;
  a.x_stride = linear.x.stride;
  a.rows = phase.rows;
  a.w = blocks_from(matrix, first);
  a.w_stride = matrix.block_stride();
  a.k = matrix.k;
  a.num_blocks = end - first;
  a.num_cols = matrix.n - first * kLanes;
  a.epilogue = linear.epilogue;
  a.bias = linear.bias ? linear.bias + first * kLanes : nullptr;
  const int64_t out_bytes =
      linear.epilogue == Epilogue::kSiluMul ? kLanes / 2 * element : kLanes * int64_t{4};
  a.out = linear.out_rows ? nullptr : static_cast<char*>(linear.out.data) + first * out_bytes;
  a.out_stride = linear.out.stride;
  a.out_rows = linear.out_rows;
  a.out_column = first * kLanes;
  if (matrix.form) {
    const GroupedRow row{matrix.k, matrix.form->group};
    weights_.kernels().grouped_matmul(
        {*matrix.form, codes, codes_stride(row), static_cast<const char*>(a.w), a});
  } else {
    weights_.kernels().matmul(a);
  }
}

void LlamaStep::attend_item(const Phase& phase, int item, int worker) {
  const LayerWeights& layer = weights_.layers()[phase.layer];
  const AttentionScratch& scratch = workers_[worker].attention;
  const AttentionStep step{weights_.config(),
                           weights_.kernels(),
                           cache_,
                           weights_.in_memory(),
                           start_of_share(layer.o, worker),
                           layer.o.block_bytes(weights_.dtype()) / size_of(weights_.dtype()),
                           phase.layer,
                           kMostRows,
                           cos_,
                           sin_,
                           layer.q_norm,
                           layer.k_norm,
                           static_cast<const float*>(qkv_.data),
                           qkv_.stride,
                           queries_,
                           attended_.data,
                           attended_.stride};
  const AttentionItem& i = (phase.kind == Kind::kRope ? items_.rope : items_.attend)[item];
  if (phase.kind == Kind::kRope) return rope_and_store(step, scratch, *i.piece, i.kv_head, i.first, i.last);
  if (phase.kind == Kind::kRopeAndAttend) {
    rope_and_store(step, scratch, *i.piece, i.kv_head, 0, i.piece->num_rows);
  }
  attend(step, scratch, i);
}

void LlamaStep::run(int index, int item, int worker) {
  const Phase& phase = phases_[index];
  Worker& own = workers_[worker];
  const bool is_new = own.serial < first_serial_;  // its first item of this run
  const uint64_t serial = first_serial_ + index;
  const bool is_first = own.serial != serial;
  if (is_first) own.serial = serial;
  if (is_new && weights_.kernels().prepare_thread) weights_.kernels().prepare_thread();
  if (phase.kind == Kind::kLinear) return apply(phase, item, worker, is_first);
  if (phase.kind >= Kind::kRope) return attend_item(phase, item, worker);
  const int end = part(phase.rows, item + 1, phase.count);
  for (int row = part(phase.rows, item, phase.count); row < end; ++row) run_row(phase, row);
}

void LlamaStep::run_row(const Phase& phase, int row) {
  switch (phase.kind) {
    case Kind::kEmbed:
      return weights_.embed(token_rows[row].token_id, residual(row));
    case Kind::kNorm:
      return norm_row(phase, row, elements(normed_, row));
    case Kind::kTap:
      if (float* const taps = token_rows[row].taps) {
        const int64_t hidden = weights_.config().hidden_size;
        std::memcpy(taps + phase.layer * hidden, residual(row), hidden * sizeof(float));
      }
      return;
    case Kind::kTaps:
      return take_taps(row);
    case Kind::kFeature:
      return take_feature(row);
    case Kind::kOutput:
      return give_output(row);
    default:
      return make_codes(phase.linear, row, codes_);
  }
}

}  // namespace pearl
