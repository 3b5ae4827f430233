#include "cuda/flight.h"

#include <algorithm>
#include <string>
#include <utility>

namespace pearl {

Flight::Flight(State* state, Run* run, VerdictRing ring, int64_t rounds_ahead, bool host_lanes,
               int num_events, std::vector<std::vector<int>> recorded)
    : state_(state),
      run_(run),
      ring_(ring),
      rounds_ahead_(rounds_ahead),
      host_lanes_(host_lanes),
      recorded_by_target_(std::move(recorded)),
      events_(num_events),
      committed_(state->prompt_len) {
  for (int slot = 0; slot < state->num_slots; ++slot) is_running_.push_back(state->running(slot));
  result_.token_ids.reserve(state->gamma_max + 1);
}

bool Flight::may_begin(int64_t round) const {
  // Round `num_read_` is the next to be read: behind the last one read it is the first.
  const int64_t unread = round - num_read_ + 1;
  return unread <= rounds_ahead_ && run_->ring.has_room(static_cast<size_t>(unread * state_->num_slots));
}

void Flight::record(int event, CUevent on_device) {
  ++events_[event].count;
  events_[event].last = on_device;
}

CUevent Flight::issued(int event, uint64_t k) const {
  // A later record of the same stream stands for an earlier one.
  return events_[event].count > k ? events_[event].last : nullptr;
}

bool Flight::has_verdict(int64_t round) const {
  for (int slot = 0; slot < state_->num_slots; ++slot) {
    if (is_running_[slot] && !ring_.has(round, slot)) return false;
  }
  return true;
}

bool Flight::read_verdicts() {
  bool moved = false;
  while (awaits_verdict() && !run_->halted() && has_verdict(num_read_)) {
    for (int slot = 0; slot < state_->num_slots; ++slot) {
      if (is_running_[slot]) read_slot(num_read_, slot);
    }
    if (host_lanes_) {
      for (const int event : recorded_by_target_[num_read_ == 0 ? 0 : 1]) run_->record(event);
    }
    ++num_read_;
    moved = true;
    if (std::find(is_running_.begin(), is_running_.end(), 1) == is_running_.end()) run_->halt();
  }
  return moved;
}

void Flight::read_slot(int64_t round, int slot) {
  const VerdictEntry entry = ring_.read(round, slot);
  if (entry.finish_reason == VerdictRing::kBadLogits) result_.error = bad_logits(slot, entry, round);
  if (host_lanes_) apply(slot, entry, round);
  committed_[slot] += entry.num_new;
  result_.request_id = state_->request_id[slot];
  result_.round = static_cast<int32_t>(round);
  result_.slot = slot;
  result_.token_ids.assign(entry.token_ids, entry.token_ids + entry.num_new);
  result_.accept_len = entry.accept_len;
  result_.num_judged = entry.num_judged;
  result_.pending_before = entry.pending_before;
  result_.finish_reason = static_cast<FinishReason>(entry.finish_reason);
  result_.t_ns = now_ns();
  is_running_[slot] = result_.finish_reason == FinishReason::kRunning;
  run_->ring.push(result_);
  result_.error.clear();
}

void Flight::apply(int slot, const VerdictEntry& entry, int64_t round) {
  State& s = *state_;
  const int window_len = round == 0 ? 0 : s.num_draft_tokens[slot];
  int32_t* const tokens = s.tokens(slot) + s.committed[slot];
  // The rule of pearl_rt/round.advance: a recovered or bonus token ends the window.
  const bool follows = entry.num_new > entry.accept_len;
  const auto reason = static_cast<FinishReason>(entry.finish_reason);
  std::copy_n(s.window(slot), window_len, tokens + entry.pending_before);
  std::copy_n(entry.token_ids, entry.num_new, tokens);
  s.committed[slot] += entry.num_new;
  s.pending[slot] =
      follows || reason != FinishReason::kRunning ? 0 : entry.pending_before + window_len - entry.num_judged;
  s.finish_reason[slot] = reason;
}

std::string Flight::bad_logits(int slot, const VerdictEntry& entry, int64_t round) const {
  // A draft that could not be sampled is -1 among the candidates.
  const bool by_draft = entry.accept_len < entry.num_judged && entry.token_ids[entry.accept_len] < 0;
  const char* step = by_draft ? "draft" : round == 0 ? "prefill" : "score";
  return std::string("NaN or infinite logits in step ") + step + " of the " +
         (by_draft ? "draft" : "target") + " lane, sequence " + std::to_string(slot) + ", position " +
         std::to_string(committed_[slot] + entry.accept_len) + "; the request was ended";
}

}  // namespace pearl
