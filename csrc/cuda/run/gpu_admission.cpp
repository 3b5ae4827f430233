#include "cuda/run/gpu_admission.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace pearl {

GpuAdmission::GpuAdmission(const std::vector<CudaLane*>& lanes, InFlight* in_flight)
    : in_flight_(in_flight), target_(lanes.front()) {
  if (lanes.size() > 1 && !lanes[1]->program().empty()) draft_ = lanes[1];
  copies_.emplace_back(target_->arrays());
  if (target_->has_host_draft()) in_flight_->on_yield([this] { use_yield(); });
  if (draft_ != nullptr) copies_.emplace_back(draft_->arrays());
}

bool GpuAdmission::has_one_memory() const { return draft_->arrays().is_same_memory(target_->arrays()); }

bool GpuAdmission::perform(bool in_one_stream) {
  is_settled_ = has_aborted_ = false;
  bool changed = take_cancelled();
  const bool admits = !prefills() && admit(in_one_stream);
  const bool shares = draft_ != nullptr && has_one_memory();
  const bool two_memories = draft_ != nullptr && !shares;
  if (draft_ != nullptr && prefills() && (admits ? shares : in_one_stream)) draft_->wait_for(target_);
  const bool feeds = prefills() && feed();
  if (feeds && fed_ == in_flight_->state()->prompt_len[slot_]) {
    judge();
    changed = true;
  }
  if (draft_ != nullptr && changed && (two_memories || !in_one_stream)) draft_->wait_for(target_);
  if (two_memories && changed) draft_->queue(draft_->arrays().verdict_from(target_->arrays()));
  if (draft_ != nullptr && in_one_stream && (admits || feeds || (changed && two_memories))) {
    target_->wait_for(draft_);
  }
  return admits || feeds || changed || has_aborted_;
}

void GpuAdmission::settle() {
  if (!is_settled_ && draft_ != nullptr && !has_one_memory()) target_->wait_for(draft_);
  is_settled_ = true;
}

bool GpuAdmission::awaits_room() const {
  if (!cancelled_.empty()) return true;
  return prefills() && !target_->has_host_draft() && is_last_pass() && !may_judge();
}

bool GpuAdmission::take_cancelled() {
  Admission& admission = in_flight_->run()->admission;
  if (admission.has_news()) {
    for (const uint64_t id : admission.take_cancelled()) cancelled_.push_back(id);
  }
  const State& state = *in_flight_->state();
  bool changed = false;
  std::vector<uint64_t> later;
  for (const uint64_t id : cancelled_) {
    for (int slot = 0; slot < state.num_slots; ++slot) {
      if (state.request_id[slot] != id) continue;
      if (slot == slot_) {
        if (!in_flight_->has_room(1)) {
          later.push_back(id);
          continue;
        }
        slot_ = -1;
        in_flight_->abort(slot);
        has_aborted_ = true;
      } else if (in_flight_->request_state(slot) == RequestState::kRunning) {
        settle();
        target_->queue(copies_[0].leave(slot));
        in_flight_->leave(slot);
        changed = true;
      }
    }
  }
  cancelled_ = std::move(later);
  return changed;
}

void GpuAdmission::use_yield() {
  State& state = *in_flight_->state();
  int& feeding = state.feeding;
  if (feeding >= 0) {
    const bool is_cancelled = feeding != slot_;
    state.fed[feeding] = state.draft_fed[feeding];
    if (is_cancelled || state.fed[feeding] == state.prompt_len[feeding] - 1) feeding = -1;
  }
  if (is_busy()) return;
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (!in_flight_->runs(slot)) state.release(slot);
  }
  reserve_slot();
  if (slot_ >= 0 && state.prompt_len[slot_] > 1 && state.draft_caches) feeding = slot_;
}

void GpuAdmission::reserve_slot() {
  const int free = free_slot();
  if (free < 0 || !in_flight_->run()->admission.has_news()) return;
  State* const state = in_flight_->state();
  const std::optional<Admission::Waiting> waiting = in_flight_->run()->admission.next(
      [&](const Request& request) { return state->reserve(free, request); });
  if (!waiting) return;
  state->fill(free, waiting->id, waiting->request, false);
  in_flight_->reserve(free);
  slot_ = free;
}

int GpuAdmission::free_slot() const {
  const int num_slots = in_flight_->state()->num_slots;
  int free = 0;
  while (free < num_slots && in_flight_->runs(free)) ++free;
  return free < num_slots ? free : -1;
}

bool GpuAdmission::prefills() const {
  return slot_ >= 0 && in_flight_->request_state(slot_) == RequestState::kPrefilling;
}

bool GpuAdmission::admit(bool in_one_stream) {
  State* const state = in_flight_->state();
  const int block = (block_ + 1) % JoinCopies::kBlocks;
  awaits_copies_ = false;
  if (slot_ < 0 && !in_flight_->run()->admission.has_news()) return false;
  const bool has_passed = target_->has_passed(block) && (draft_ == nullptr || draft_->has_passed(block));
  if (has_passed && !target_->has_host_draft()) reserve_slot();
  awaits_copies_ = !has_passed && (slot_ >= 0 || free_slot() >= 0);
  if (!has_passed || slot_ < 0) return false;
  in_flight_->begin_prefill(slot_);
  block_ = block;
  fed_ = state->found_tokens(slot_);
  const bool processed = target_->is_processed();
  if (draft_ != nullptr) target_->wait_for(draft_);  // it may still feed tokens of the slot's last request
  is_settled_ = true;
  target_->queue(copies_[0].begin(*state, slot_, block_, true, processed));
  if (draft_ != nullptr) {
    if (in_one_stream) draft_->wait_for(target_);  // rounds queued so far copy rows to the draft's memory
    draft_->queue(copies_[1].begin(*state, slot_, block_, !has_one_memory(), processed));
  }
  mark();
  return true;
}

bool GpuAdmission::feed() {
  const int64_t length = in_flight_->state()->prompt_len[slot_];
  const int64_t end = target_->arrays().sizes().pass_end(fed_, length);
  if (is_last_pass() && !may_judge()) return false;
  const int64_t context = std::min(end, length - 1);  // the first window feeds the last token
  const auto feed_draft = [&] {
    if (draft_ != nullptr && fed_ < context) draft_->feed(copies_[1].pass(slot_, block_, fed_, context));
  };
  const bool reads_target = draft_ != nullptr && draft_->reads_target();
  if (!reads_target) feed_draft();
  target_->feed(copies_[0].pass(slot_, block_, fed_, end));
  if (reads_target) {
    draft_->wait_for(target_);
    feed_draft();
  }
  mark();
  fed_ = end;
  return true;
}

bool GpuAdmission::is_last_pass() const {
  const int64_t length = in_flight_->state()->prompt_len[slot_];
  return target_->arrays().sizes().pass_end(fed_, length) == length;
}

// Room for two results: the first verdict follows the last pass at once, and a round's verdict follows it. A
// draft on the host must have fed its chunk of the prompt, and have yielded: the first verdict is then read
// before it drafts, so that the request has the windows that it has alone.
bool GpuAdmission::may_judge() const {
  const bool is_fed = in_flight_->state()->feeding != slot_ && in_flight_->draft_yields();
  return in_flight_->has_room(2) && (is_fed || !target_->has_host_draft());
}

void GpuAdmission::mark() {
  target_->mark(block_);
  if (draft_ != nullptr) draft_->mark(block_);
}

void GpuAdmission::judge() {
  settle();
  target_->judge(slot_, copies_[0].await_verdict(slot_), copies_[0].take_verdict(slot_));
  in_flight_->join(slot_);
  slot_ = -1;
}

}  // namespace pearl
