#include "cuda/boarding.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace pearl {

Boarding::Boarding(const std::vector<CudaLane*>& lanes, Flight* flight)
    : flight_(flight), target_(lanes.front()) {
  if (lanes.size() > 1 && !lanes[1]->program().empty()) draft_ = lanes[1];
  copies_.emplace_back(target_->arrays());
  if (draft_ != nullptr) copies_.emplace_back(draft_->arrays());
}

bool Boarding::has_one_memory() const { return draft_->arrays().is_same_memory(target_->arrays()); }

bool Boarding::perform(bool in_one_stream) {
  is_settled_ = has_aborted_ = false;
  if (target_->has_host_peer()) return false;
  bool changed = take_cancelled();
  const bool boards = !is_feeding() && admit();
  const bool shares = draft_ != nullptr && has_one_memory();
  if (shares && (boards || (in_one_stream && is_feeding()))) draft_->wait_for(target_);
  const bool feeds = is_feeding() && feed();
  if (feeds && fed_ == flight_->state()->prompt_len[slot_]) {
    judge();
    changed = true;
  }
  if (draft_ != nullptr && in_one_stream) {
    if (feeds) target_->wait_for(draft_);
  } else if (draft_ != nullptr && changed) {
    draft_->wait_for(target_);
    if (!has_one_memory()) draft_->queue(draft_->arrays().verdict_from(target_->arrays()));
  }
  return boards || feeds || changed || has_aborted_;
}

void Boarding::settle() {
  if (!is_settled_ && draft_ != nullptr && !has_one_memory()) target_->wait_for(draft_);
  is_settled_ = true;
}

bool Boarding::take_cancelled() {
  Admission& admission = flight_->run()->admission;
  if (admission.has_news()) {
    for (const uint64_t id : admission.take_cancelled()) cancelled_.push_back(id);
  }
  const State& state = *flight_->state();
  bool changed = false;
  std::vector<uint64_t> later;
  for (const uint64_t id : cancelled_) {
    for (int slot = 0; slot < state.num_slots; ++slot) {
      if (state.request_id[slot] != id) continue;
      if (slot == slot_) {
        if (!flight_->has_room(1)) {
          later.push_back(id);
          continue;
        }
        slot_ = -1;
        flight_->abort(slot);
        has_aborted_ = true;
      } else if (flight_->runs(slot) && !flight_->leaves(slot)) {
        settle();
        target_->queue(copies_[0].leave(slot));
        flight_->leave(slot);
        changed = true;
      }
    }
  }
  cancelled_ = std::move(later);
  return changed;
}

bool Boarding::admit() {
  State* const state = flight_->state();
  int free = 0;
  while (free < state->num_slots && flight_->runs(free)) ++free;
  awaits_copies_ = false;
  if (free == state->num_slots || !flight_->run()->admission.has_news()) return false;
  const int block = (block_ + 1) % JoinCopies::kBlocks;
  awaits_copies_ = !target_->has_passed(block) || (draft_ != nullptr && !draft_->has_passed(block));
  if (awaits_copies_) return false;
  const std::optional<Admission::Waiting> waiting =
      flight_->run()->admission.next([](const Request&) { return true; });  // every slot has pages of its own
  if (!waiting) return false;
  state->fill(free, waiting->id, waiting->request, false);
  flight_->clear(free);
  slot_ = free;
  block_ = block;
  fed_ = 0;
  const bool shaped = target_->is_shaped();
  if (draft_ != nullptr) target_->wait_for(draft_);  // it may still be fed what the slot had before
  is_settled_ = true;
  target_->queue(copies_[0].begin(*state, slot_, block_, true, shaped));
  if (draft_ != nullptr) {
    draft_->queue(copies_[1].begin(*state, slot_, block_, !has_one_memory(), shaped));
  }
  mark();
  return true;
}

bool Boarding::feed() {
  const int64_t length = flight_->state()->prompt_len[slot_];
  const int64_t end = std::min(length, fed_ + target_->arrays().sizes().prefill_chunk);
  if (end == length && !flight_->has_room(2)) return false;  // its verdict follows at once, then a round's
  const int64_t context = std::min(end, length - 1);         // the first window feeds the last token
  if (draft_ != nullptr && fed_ < context) draft_->feed(copies_[1].pass(slot_, block_, fed_, context));
  target_->feed(copies_[0].pass(slot_, block_, fed_, end));
  mark();
  fed_ = end;
  return true;
}

void Boarding::mark() {
  target_->mark(block_);
  if (draft_ != nullptr) draft_->mark(block_);
}

void Boarding::judge() {
  settle();
  target_->judge(slot_, copies_[0].await_verdict(slot_), copies_[0].take_verdict(slot_));
  flight_->join(slot_);
  slot_ = -1;
}

}  // namespace pearl
