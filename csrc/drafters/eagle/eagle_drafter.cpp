#include "drafters/eagle/eagle_drafter.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/checks.h"

namespace pearl {

EagleDrafter::EagleDrafter(std::shared_ptr<Executor> head, std::vector<int32_t> target_ids)
    : ModelDrafter(head),
      taps_(std::make_shared<TapRows>(head)),
      target_ids_(std::move(target_ids)),
      head_rows_(head->logits_size()) {
  const size_t wanted = target_ids_.empty() ? head->vocab_size() : target_ids_.size();
  if (wanted != static_cast<size_t>(head_rows_)) {
    refuse("the head has rows for " + std::to_string(head_rows_) + " ids, and target_ids for " +
           std::to_string(wanted) + "; give one for each");
  }
  lacks_ids_ = !target_ids_.empty();
  for (const int32_t id : target_ids_) check_between("target_ids", id, 0, head->vocab_size() - 1);
}

void EagleDrafter::start(State* state, Run* run) {
  if (!taps_->is_of(state)) refuse("the target's lane keeps no taps; make it with those of this drafter");
  ModelDrafter::start(state, run);
  own_fed_.assign(state->num_slots, -1);
  if (!target_ids_.empty()) rows_.resize(static_cast<size_t>(state->num_slots) * head_rows_);
}

void EagleDrafter::catch_up(int b) {
  const int64_t end = end_[b];
  own_fed_[b] = -1;
  if (!taps_->has(b, std::min(taps_->fed(b), end - 2), end - 1)) window_len_[b] = 0;
}

void EagleDrafter::follow(int b) {
  const int64_t start = taps_->fed(b), end = end_[b] - 1;
  if (start < end && taps_->has(b, start, end)) feeder_->segments.push_back(taps_->rows(b, start, end));
}

void EagleDrafter::push_last(int b) {
  State& s = *state_;
  const int64_t end = end_[b];
  if (own_fed_[b] < 0) {  // of the last row the logits are wanted
    feeder_->segments.push_back(taps_->rows(b, std::min(taps_->fed(b), end - 2), end - 1));
  } else {
    feeder_->push(b, s.window(b) + own_fed_[b], 1, end - 1 + own_fed_[b], 0, nullptr);
  }
  if (++own_fed_[b] < drafted_[b]) return;  // tokens that the form of the answer forced follow
  Segment& last = feeder_->segments.back();
  last.num_logits = 1;
  last.logits =
      lacks_ids_ ? rows_.data() + static_cast<size_t>(b) * head_rows_ : s.draft_row(b, end + drafted_[b]);
}

bool EagleDrafter::take_rows(const Segment& segment, int vocab) {
  State& s = *state_;
  const int b = segment.slot;
  if (lacks_ids_) {
    float* const row = s.draft_row(b, end_[b] + drafted_[b]);
    std::fill_n(row, s.draft_vocab_size, -std::numeric_limits<float>::infinity());
    for (int i = 0; i < head_rows_; ++i) row[target_ids_[i]] = segment.logits[i];
  }
  return ModelDrafter::take_rows(segment, vocab);
}

}  // namespace pearl
