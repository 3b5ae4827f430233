#include "cuda/lane/in_flight.h"

#include <algorithm>
#include <string>
#include <utility>

namespace pearl {

InFlight::InFlight(State* state, Run* run, VerdictRing ring, LogprobRing logprobs, int64_t rounds_ahead,
                   bool host_lanes, int64_t draft_lag, int num_events, std::vector<std::vector<int>> recorded)
    : state_(state),
      run_(run),
      ring_(ring),
      logprobs_(logprobs),
      rounds_ahead_(rounds_ahead),
      host_lanes_(host_lanes),
      draft_lag_(draft_lag),
      recorded_by_target_(std::move(recorded)),
      events_(num_events),
      slots_(state->num_slots) {
  for (int slot = 0; slot < state->num_slots; ++slot) {
    if (state->running(slot)) slots_[slot].request = RequestState::kRunning;
    slots_[slot].committed = state->prompt_len[slot];
  }
  result_.token_ids.reserve(state->gamma_max + 1);
}

bool InFlight::may_begin(int64_t round) const {
  // Round read_rounds_ is the next to be read. Beside a draft on the host never more than two rounds are in
  // flight, and requests that join it need two.
  const int64_t ahead = host_lanes_ ? std::max<int64_t>(rounds_ahead_, 2) : rounds_ahead_;
  return round - read_rounds_ + 1 <= ahead && has_room(0);
}

bool InFlight::has_room(int more) const {
  int64_t needed = more;
  for (const SlotProgress& slot : slots_) {
    // + 1: the result of the next round, or "abort".
    if (slot.runs()) needed += queued_rounds(slot) - slot.read_rounds + 1;
  }
  return run_->ring.has_room(static_cast<size_t>(needed));
}

bool InFlight::awaits_verdict() const {
  return draft_yields() && std::any_of(slots_.begin(), slots_.end(), [&](const SlotProgress& slot) {
           return slot.runs() && slot.read_rounds < queued_rounds(slot);
         });
}

bool InFlight::any_runs() const {
  return std::any_of(slots_.begin(), slots_.end(), [](const SlotProgress& slot) { return slot.runs(); });
}

bool InFlight::any_running() const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [](const SlotProgress& slot) { return slot.request == RequestState::kRunning; });
}

void InFlight::reserve(int slot) {
  slots_[slot].request = RequestState::kWaiting;
  ring_.clear(slot);
  logprobs_.clear(slot);
}

void InFlight::join(int slot) {
  slots_[slot] = {};
  slots_[slot].request = RequestState::kRunning;
  slots_[slot].offset = queued_rounds_ - 1;  // its round 0 is queued
  slots_[slot].committed = state_->prompt_len[slot];
  keep_prompt(slot);
}

// All passes of the prompt are queued, and prompts that begin in its blocks are fed behind them.
void InFlight::keep_prompt(int slot) {
  State& s = *state_;
  if (!s.prefixes) return;
  s.fed[slot] = s.draft_fed[slot] = s.prompt_len[slot] - 1;  // the first window writes the last one again
  s.make_known(slot, false);
}

void InFlight::leave(int slot) {
  slots_[slot].request = RequestState::kLeaving;
  slots_[slot].end = queued_rounds_;
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
  const bool may_read = draft_yields();
  for (int slot = 0; slot < state_->num_slots && !run_->halted(); ++slot) {
    const SlotProgress& own = slots_[slot];
    while (may_read && own.runs() && own.read_rounds < queued_rounds(own) &&
           has_come(own.read_rounds, slot)) {
      read_slot(slot);
      moved = true;
    }
    if (own.request == RequestState::kLeaving && own.read_rounds == queued_rounds(own)) {
      end_slot(slot);
      moved = true;
    }
  }
  count_read_rounds();
  return moved;
}

bool InFlight::has_come(int64_t round, int slot) const {
  if (!ring_.has(round, slot)) return false;
  return state_->num_logprobs[slot] < 0 || ring_.read(round, slot).num_new == 0 || logprobs_.has(round, slot);
}

void InFlight::count_read_rounds() {
  int64_t read = queued_rounds_;
  for (const SlotProgress& slot : slots_) {
    if (slot.runs()) read = std::min(read, slot.offset + slot.read_rounds);
  }
  for (; read_rounds_ < read; ++read_rounds_) {
    if (!host_lanes_) continue;
    for (const int slot : aborted_) state_->finish_reason[slot] = FinishReason::kAbort;
    aborted_.clear();
    if (read_rounds_ > 0 && during_yield_) during_yield_();
    for (const int event : recorded_by_target_[read_rounds_ == 0 ? 0 : 1]) run_->record(event);
  }
}

void InFlight::end_slot(int slot) {
  result_.request_id = state_->request_id[slot];
  result_.round = static_cast<int32_t>(slots_[slot].read_rounds);
  result_.slot = slot;
  result_.token_ids.clear();
  result_.certain.clear();
  result_.logprobs.clear();
  result_.accept_len = result_.num_judged = result_.pending_before = 0;
  result_.num_cached_tokens = state_->cached_tokens(slot);
  result_.finish_reason = FinishReason::kAbort;
  result_.t_ns = now_ns();
  vacate(slot);
  if (host_lanes_) aborted_.push_back(slot);
  run_->ring.push(result_);
}

void InFlight::vacate(int slot) {
  slots_[slot].request = RequestState::kNone;
  // The blocks are free although rounds in flight may still write to them: each lane's stream runs those
  // before the next owner's prompt, and later rounds read that the slot is idle (DESIGN.md, section 5). A
  // draft on the host has a thread of its own, and may use them until it yields: they are released there.
  if (!host_lanes_) state_->release(slot);
}

void InFlight::read_slot(int slot) {
  const int64_t round = slots_[slot].read_rounds++;
  const VerdictEntry entry = ring_.read(round, slot);
  if (entry.finish_reason == FinishReason::kError) result_.error = bad_logits(slot, entry, round);
  result_.certain.clear();
  if (host_lanes_) {
    const int judged = std::min(entry.accept_len + 1, entry.num_judged);
    state_->find_drafts(slot, DraftKind::kCertain, judged, &result_.certain);
    apply(slot, entry, round);
  }
  if (state_->prefixes) keep(slot, entry);
  slots_[slot].committed += entry.num_new;
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
  result_.num_cached_tokens = state_->cached_tokens(slot);
  result_.finish_reason = entry.finish_reason;
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
  const FinishReason reason = entry.finish_reason;
  std::copy_n(s.window(slot), window_len, tokens + entry.pending_before);
  std::copy_n(entry.token_ids, entry.num_new, tokens);
  s.committed[slot] += entry.num_new;
  s.pending[slot] =
      follows || reason != FinishReason::kRunning ? 0 : entry.pending_before + window_len - entry.num_judged;
  s.finish_reason[slot] = reason;
}

// What is final can be found by others: its rows are written, in both caches where a draft has windows, and
// rounds in flight write from the last token but one on. A draft that fills a window in one pass has rows of
// mask tokens where the last window's tokens are, and writes the last gamma + 1 rows in its next pass; none
// before the last token of the prompt. A prompt that begins in them is fed behind these rounds, on the same
// streams.
void InFlight::keep(int slot, const VerdictEntry& entry) {
  State& s = *state_;
  if (entry.finish_reason == FinishReason::kError) return;
  if (!host_lanes_) {  // else a draft on the host has it by now
    std::copy_n(entry.token_ids, entry.num_new, s.tokens(slot) + s.committed[slot]);
    s.committed[slot] += entry.num_new;
  }
  s.fed[slot] = s.prompt_len[slot];
  const int64_t prompt = s.draft_prompt(slot);
  s.draft_fed[slot] = s.gamma[slot] > 0 ? std::max(s.committed[slot] - draft_lag_, prompt) : prompt;
  s.make_known(slot, false);
}

std::string InFlight::bad_logits(int slot, const VerdictEntry& entry, int64_t round) const {
  // A draft that could not be sampled is -1 among the candidates.
  const bool by_draft = entry.accept_len < entry.num_judged && entry.token_ids[entry.accept_len] < 0;
  const char* step = by_draft ? "draft" : round == 0 ? "prefill" : "score";
  return bad_logits_text(step, by_draft ? "draft" : "target", slot,
                         slots_[slot].committed + entry.accept_len);
}

}  // namespace pearl
