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

void refuse(int segment, const std::string& what) {
  throw std::invalid_argument("segment " + std::to_string(segment) + ": " + what);
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
                             std::optional<int> num_blocks, std::optional<int> block_size,
                             std::vector<int> tap_layers)
    : weights_(std::move(weights)),
      core_set_(std::move(core_set)),
      num_slots_(checked_slots(num_slots)),
      max_model_len_(checked_length(max_model_len)),
      cache_(weights_->config(), weights_->dtype(),
             num_blocks.value_or(whole_slots(num_slots, max_model_len,
                                             block_size.value_or(BlockPool::size_for(max_model_len)))),
             block_size.value_or(BlockPool::size_for(max_model_len))),
      cos_(cos, cos + max_model_len * (weights_->config().head_dim / 2)),
      sin_(sin, sin + max_model_len * (weights_->config().head_dim / 2)),
      step_(*weights_, *core_set_, cache_, max_model_len, cos_.data(), sin_.data()) {
  const int64_t per_slot = (max_model_len + cache_.block_size() - 1) / cache_.block_size();
  check_memory(4.0 * num_slots * static_cast<double>(per_slot),
               "the block table of " + std::to_string(num_slots) + " slots");
  const LlamaConfig& c = weights_->config();
  for (size_t i = 0; i < tap_layers.size(); ++i) {
    const int64_t least = i == 0 ? 0 : int64_t{tap_layers[i - 1]} + 1;
    check_between("a layer of the taps, which ascend,", tap_layers[i], least, c.num_hidden_layers);
  }
  tap_size_ = c.is_head() ? c.tap_size : static_cast<int64_t>(tap_layers.size()) * c.hidden_size;
  if (c.is_head() && !tap_layers.empty()) throw std::invalid_argument("a head has no taps of its own");
  step_.tap_layers = std::move(tap_layers);
  if (c.is_head()) outputs_.resize(static_cast<size_t>(num_slots) * c.hidden_size);
  own_blocks_.resize(num_slots * per_slot);
  std::iota(own_blocks_.begin(), own_blocks_.end(), 0);
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
    const int most_open = std::min(s.num_tokens, LlamaStep::kMostRows);
    if (s.num_open < 0 || s.num_open > most_open) {
      refuse(i,
             "num_open " + std::to_string(s.num_open) + " is not in [0, " + std::to_string(most_open) + "]");
    }
    for (int t = 0; t < s.num_tokens; ++t) {
      if (s.token_ids[t] < 0 || s.token_ids[t] >= vocab_size()) {
        refuse(i, "token id " + std::to_string(s.token_ids[t]) + " at position " +
                      std::to_string(s.start + t) + " is not in [0, " + std::to_string(vocab_size()) + ")");
      }
    }
    if (s.taps != nullptr && step_.tap_layers.empty()) refuse(i, "the model has no layers for its taps");
    const bool is_fed = s.features != nullptr, is_head = weights_->config().is_head();
    if (is_fed && !is_head) refuse(i, "it has features, and the model is no head");
    if (is_head && !is_fed && s.num_tokens > 1) {
      refuse(i, std::to_string(s.num_tokens) + " tokens without features; a head goes on by one");
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
  step_.pieces.clear();
  step_.token_rows.clear();
  for (int i = 0; i < num_segments; ++i) {
    const Segment& s = segments[i];
    for (int done = 0; done < s.num_tokens;) {
      const int used = static_cast<int>(step_.token_rows.size());
      const int room = LlamaStep::kMostRows - used, left = s.num_tokens - done;
      // Rows that see each other are in one step.
      const int take = left <= room ? left : std::clamp(left - s.num_open, 0, room);
      if (take > 0) {
        step_.pieces.push_back({block_table(s), used, take, s.start + done, take == left ? s.num_open : 0});
      }
      for (int t = done; t < done + take; ++t) step_.token_rows.push_back(token_row(s, t));
      done += take;
      if (take == 0 || used + take == LlamaStep::kMostRows) run_step();
    }
  }
  if (!step_.token_rows.empty()) run_step();
}

void LlamaExecutor::copy_rows(int from, int to, int first, int count) {
  const OneThread one_thread(&busy_);
  check_between("a block that is copied", from, 0, num_blocks() - 1);
  check_between("a block that rows are copied to", to, 0, num_blocks() - 1);
  check_between("the first row", first, 0, block_size());
  check_between("the number of rows", count, 0, block_size() - first);
  cache_.copy_rows(from, to, first, count);
}

LlamaStep::TokenRow LlamaExecutor::token_row(const Segment& s, int token) {
  const int wanted = token - (s.num_tokens - s.num_logits);
  LlamaStep::TokenRow row{s.token_ids[token]};
  if (wanted >= 0) row.logits = s.row(wanted, logits_size());
  if (s.taps != nullptr) row.taps = s.taps + token * tap_size_;
  if (!weights_->config().is_head()) return row;
  float* const output = outputs_.data() + static_cast<size_t>(s.slot) * weights_->config().hidden_size;
  if (s.features != nullptr) row.features = s.features + token * tap_size_;
  if (s.features == nullptr) row.own = output;
  if (token + 1 == s.num_tokens) row.output = output;
  return row;
}

void LlamaExecutor::run_step(bool is_whole) {
  step_.plan(is_whole);
  core_set_->run(step_);
  step_.pieces.clear();
  step_.token_rows.clear();
}

double LlamaExecutor::time_linears(int rows, int repeats) {
  check_between("rows", rows, 1, LlamaStep::kMostRows);
  check_between("repeats", repeats, 1, kMostRepeats);
  const OneThread one_thread(&busy_);
  std::vector<float> logits(int64_t{rows} * vocab_size());
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    for (int row = 0; row < rows; ++row) {
      step_.token_rows.push_back({0, logits.data() + int64_t{row} * vocab_size()});
    }
    const auto begin = std::chrono::steady_clock::now();
    run_step(false);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace pearl
