#include "drafters/eagle/tap_rows.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "coordinator/feeder.h"
#include "core/checks.h"

namespace pearl {

TapRows::TapRows(std::shared_ptr<Executor> head) : head_(std::move(head)), tap_size_(head_->tap_size()) {
  if (tap_size_ < 1) refuse("the head is a model that is fed no taps; give one that is, or a ModelDrafter");
}

void TapRows::attach(const Executor& target, const State& state) {
  if (target.tap_size() != tap_size_) {
    refuse("the target keeps " + std::to_string(target.tap_size()) +
           " numbers of a token, and the head is fed " + std::to_string(tap_size_) +
           "; name the layers that the head was made for");
  }
  // A score's rows, or a chunk of a prompt, and the row before them.
  num_rows_ = 1 + std::max<int64_t>(Feeder::kChunk, state.gamma_max + 1);
  rows_.reset(new float[static_cast<size_t>(state.num_slots * num_rows_ * tap_size_)]);
  for (auto* each : {&first_, &low_, &end_, &fed_}) each->assign(state.num_slots, 0);
}

void TapRows::start(State* state) {
  state_ = state;
  for (auto* each : {&first_, &low_, &end_, &fed_}) std::fill(each->begin(), each->end(), 0);
}

void TapRows::place(std::vector<Segment>* segments) {
  for (Segment& segment : *segments) {
    const int b = segment.slot;
    const int64_t before = segment.start - 1;
    const bool has_before = low_[b] <= before && before < end_[b];
    if (has_before) {
      float* const first = rows_.get() + b * num_rows_ * tap_size_;
      std::memmove(first, row(b, before), tap_size_ * sizeof(float));
    }
    if (segment.start == 0) fed_[b] = 0;  // another request
    first_[b] = before;
    low_[b] = has_before ? before : segment.start;
    end_[b] = segment.start + segment.num_tokens;
    segment.taps = row(b, segment.start);
  }
}

void TapRows::take(const std::vector<Segment>& segments) {
  State& s = *state_;
  prompts_.clear();
  for (const Segment& segment : segments) {
    const int b = segment.slot;
    const int64_t end = end_[b] - 1;  // the token behind the last one is not known yet
    if (segment.start >= s.prompt_len[b] || fed_[b] >= end || s.draft_prompt(b) == 0) continue;
    if (has(b, fed_[b], end)) prompts_.push_back(rows(b, fed_[b], end));
  }
  if (!prompts_.empty()) head_->forward(prompts_.data(), static_cast<int>(prompts_.size()));
}

bool TapRows::has(int b, int64_t start, int64_t end) const {
  return low_[b] <= start && end <= end_[b] && end <= state_->draft_capacity;
}

Segment TapRows::rows(int b, int64_t start, int64_t end) {
  State& s = *state_;
  Segment rows{b,
               s.tokens(b) + start + 1,
               static_cast<int>(end - start),
               start,
               0,
               nullptr,
               s.table(b),
               s.num_held[b]};
  rows.features = row(b, start);
  fed_[b] = end;
  return rows;
}

}  // namespace pearl
