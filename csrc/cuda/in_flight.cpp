#include "cuda/in_flight.h"

#include <algorithm>
#include <string>
#include <utility>

namespace pearl {

InFlight::InFlight(State* state, Run* run, VerdictRing ring, LogprobRing logprobs, int64_t rounds_ahead,
                   bool host_lanes, int num_events, std::vector<std::vector<int>> recorded)
    : state_(state),
      run_(run),
      ring_(ring),
      logprobs_(logprobs),
      rounds_ahead_(rounds_ahead),
      host_lanes_(host_lanes),
      recorded_by_target_(std::move(recorded)),
      events_(num_events),
      slots_(state->num_slots) {
  for (int slot = 0; slot < state->num_slots; ++slot) {
    slots_[slot].runs = state->running(slot);
    slots_[slot].committed = state->prompt_len[slot];
  }
  result_.token_ids.reserve(state->gamma_max + 1);
}

bool InFlight::may_begin(int64_t round) const {
  // Round `num_read_` is the next to be read: behind the last one read it is the first. A draft on the host
  // lets nobody run further ahead than one; requests that join it need that one.
  const int64_t ahead = host_lanes_ ? std::max<int64_t>(rounds_ahead_, 2) : rounds_ahead_;
  return round - num_read_ + 1 <= ahead && has_room(0);
}

bool InFlight::has_room(int more) const {
  int64_t owed = more;
  for (const SlotProgress& progress : slots_) {
    if (progress.runs) owed += num_issued(progress) - progress.num_read + 1;  // of the next round, or "abort"
  }
  return run_->ring.has_room(static_cast<size_t>(owed));
}

bool InFlight::awaits_verdict() const {
  return draft_yields() && std::any_of(slots_.begin(), slots_.end(), [&](const SlotProgress& progress) {
           return progress.runs && progress.num_read < num_issued(progress);
         });
}

bool InFlight::is_empty() const {
  return std::none_of(slots_.begin(), slots_.end(),
                      [](const SlotProgress& progress) { return progress.runs; });
}

bool InFlight::anyone_stays() const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [](const SlotProgress& progress) { return progress.runs && !progress.leaves; });
}

void InFlight::join(int slot) {
  slots_[slot] = {};
  slots_[slot].runs = true;
  slots_[slot].offset = num_issued_ - 1;  // one round of its own is queued
  slots_[slot].committed = state_->prompt_len[slot];
}

void InFlight::leave(int slot) {
  slots_[slot].leaves = true;
  slots_[slot].until = num_issued_;
}

void InFlight::abort(int slot) {
  slots_[slot] = {};
  end_slot(slot);
}

void InFlight::record(int event, CUevent on_device) {
  ++events_[event].count;
  events_[event].last = on_device;
}

CUevent InFlight::issued(int event, uint64_t k) const {
  // A later record of the same stream stands for an earlier one.
  return events_[event].count > k ? events_[event].last : nullptr;
}

bool InFlight::read_verdicts() {
  bool moved = false;
  const bool draft_yields = this->draft_yields();
  for (int slot = 0; slot < state_->num_slots && !run_->halted(); ++slot) {
    const SlotProgress& progress = slots_[slot];
    while (draft_yields && progress.runs && progress.num_read < num_issued(progress) &&
           is_there(progress.num_read, slot)) {
      read_slot(slot);
      moved = true;
    }
    if (progress.runs && progress.leaves && progress.num_read == num_issued(progress)) {
      end_slot(slot);
      moved = true;
    }
  }
  count_rounds();
  return moved;
}

bool InFlight::is_there(int64_t round, int slot) const {
  if (!ring_.has(round, slot)) return false;
  return state_->num_logprobs[slot] < 0 || ring_.read(round, slot).num_new == 0 || logprobs_.has(round, slot);
}

void InFlight::count_rounds() {
  int64_t done = num_issued_;
  for (const SlotProgress& progress : slots_) {
    if (progress.runs) done = std::min(done, progress.offset + progress.num_read);
  }
  for (; num_read_ < done; ++num_read_) {
    if (!host_lanes_) continue;
    for (const int slot : ended_) state_->finish_reason[slot] = FinishReason::kAbort;
    ended_.clear();
    if (num_read_ > 0 && during_yield_) during_yield_();
    for (const int event : recorded_by_target_[num_read_ == 0 ? 0 : 1]) run_->record(event);
  }
}

void InFlight::end_slot(int slot) {
  result_.request_id = state_->request_id[slot];
  result_.round = static_cast<int32_t>(slots_[slot].num_read);
  result_.slot = slot;
  result_.token_ids.clear();
  result_.logprobs.clear();
  result_.accept_len = result_.num_judged = result_.pending_before = 0;
  result_.finish_reason = FinishReason::kAbort;
  result_.t_ns = now_ns();
  vacate(slot);
  if (host_lanes_) ended_.push_back(slot);
  run_->ring.push(result_);
}

void InFlight::vacate(int slot) {
  slots_[slot].runs = false;
  // What was queued for the slot is ahead of a new owner's passes on each lane's stream, and what is queued
  // from now on reads that it does not run: DESIGN.md, section 5. A draft on the host may still use
  // them, on a thread of its own: those blocks go back when it waits.
  if (!host_lanes_) state_->release(slot);
}

void InFlight::read_slot(int slot) {
  SlotProgress& progress = slots_[slot];
  const int64_t round = progress.num_read++;
  const VerdictEntry entry = ring_.read(round, slot);
  if (entry.finish_reason == VerdictRing::kBadLogits) result_.error = bad_logits(slot, entry, round);
  if (host_lanes_) apply(slot, entry, round);
  progress.committed += entry.num_new;
  result_.request_id = state_->request_id[slot];
  result_.round = static_cast<int32_t>(round);
  result_.slot = slot;
  result_.token_ids.assign(entry.token_ids, entry.token_ids + entry.num_new);
  result_.logprobs.clear();
  if (const int k = state_->num_logprobs[slot]; k >= 0) {
    logprobs_.read(round, slot, entry.num_new, k, &result_.logprobs);
  }
  result_.accept_len = entry.accept_len;
  result_.num_judged = entry.num_judged;
  result_.pending_before = entry.pending_before;
  result_.finish_reason = static_cast<FinishReason>(entry.finish_reason);
  result_.t_ns = now_ns();
  if (result_.finish_reason != FinishReason::kRunning) vacate(slot);
  run_->ring.push(result_);
  result_.error.clear();
}

void InFlight::apply(int slot, const VerdictEntry& entry, int64_t round) {
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

std::string InFlight::bad_logits(int slot, const VerdictEntry& entry, int64_t round) const {
  // A draft that could not be sampled is -1 among the candidates.
  const bool by_draft = entry.accept_len < entry.num_judged && entry.token_ids[entry.accept_len] < 0;
  const char* step = by_draft ? "draft" : round == 0 ? "prefill" : "score";
  return std::string("NaN or infinite logits in step ") + step + " of the " +
         (by_draft ? "draft" : "target") + " lane, sequence " + std::to_string(slot) + ", position " +
         std::to_string(slots_[slot].committed + entry.accept_len) + "; the request was ended";
}

}  // namespace pearl
