#include "drafters/eagle/eagle_drafter.h"

#include <algorithm>
#include <utility>

namespace pearl {

EagleDrafter::EagleDrafter(std::shared_ptr<Executor> head, std::vector<int32_t> target_ids)
    : ModelDrafter(head, {}, {std::move(target_ids), {}}), taps_(std::make_shared<TapRows>(head)) {}

void EagleDrafter::start(State* state, Run* run) {
  if (!taps_->is_of(state)) refuse("the target's lane keeps no taps; make it with those of this drafter");
  ModelDrafter::start(state, run);
  own_fed_.assign(state->num_slots, -1);
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
  last.logits = logits_at(b, end + drafted_[b]);
}

}  // namespace pearl
