// Feeds one model from the state: tokens of the slots at their positions, with the KV blocks of each slot.
// Knows which prompts are fed, and nothing of windows or verdicts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/prompt_rows.h"
#include "coordinator/run.h"
#include "coordinator/state.h"
#include "core/executor.h"

namespace pearl {

class Feeder {
 public:
  static constexpr int64_t kChunk = PromptRows::kLongestChunk;

  // taps: reads those of all that is fed; null: nothing does. ids: [V] what is fed for each id of the state;
  // none: itself.
  Feeder(Executor* executor, State* state, const Run* run, TapReader* taps = nullptr,
         const std::vector<int32_t>& ids = {})
      : executor_(executor),
        state_(state),
        run_(run),
        taps_(taps),
        ids_(ids),
        rows_(state),
        place_(state->num_slots) {
    const int sequences = state->num_slots * state->candidates;
    segments.reserve(sequences);
    if (!ids_.empty() || executor->vocab_size() < state->vocab_size) known_.resize(sequences * longest());
    if (state->candidates == 1) return;
    branches_.emplace(state->num_slots, state->candidates, state->gamma_max + 1, state->blocks.num_blocks(),
                      state->blocks.block_size(), state->max_blocks);
  }

  // The tokens of a slot's prompt that one pass feeds.
  int64_t chunk(int slot) const { return rows_.chunk(slot); }

  // All prompts in chunks, so that a stop is heard. with_last: their last tokens too, whose logits go to
  // target row 0; without, what a draft is fed: all but the last, or nothing. False: it was stopped.
  bool prefill(bool with_last) {
    State& s = *state_;
    for (int b = 0; b < s.num_slots; ++b) place_[b] = s.found_tokens(b);
    for (;;) {
      if (run_->halted()) return false;
      segments.clear();
      for (int b = 0; b < s.num_slots; ++b) {
        const int64_t end = with_last || s.prompt_len[b] == 0 ? s.prompt_len[b] : s.draft_prompt(b);
        const int64_t start = place_[b];
        place_[b] = std::max(start, std::min(end, start + chunk(b)));
        push_prompt(b, start, place_[b], with_last);
      }
      if (segments.empty()) return true;
      forward();
    }
  }

  // Tokens that follow each other at `start`, as this model can be fed them: a draft padded to fewer rows
  // than the target has no row for some of the target's ids, and gets its last one instead. At most a
  // chunk and a window.
  void push(int slot, const int32_t* token_ids, int64_t num_tokens, int64_t start, int num_logits,
            float* logits) {
    segments.push_back({slot, known(slot, token_ids, num_tokens), static_cast<int>(num_tokens), start,
                        num_logits, logits, state_->table(slot), state_->num_held[slot]});
  }

  // The same of a window beside window 0, its own from position `end` on, whose segment has slot
  // number * B + slot.
  void push_branch(int slot, int number, const int32_t* token_ids, int64_t num_tokens, int64_t start,
                   int num_logits, float* logits, int64_t end) {
    const std::span<const int32_t> table = branches_->table(executor_, slot, number, state_->request_id[slot],
                                                            state_->table(slot), end, start + num_tokens);
    const int place = number * state_->num_slots + slot;
    segments.push_back({place, known(place, token_ids, num_tokens), static_cast<int>(num_tokens), start,
                        num_logits, logits, table.data(), static_cast<int>(table.size())});
  }
  // Rows [start, end) of such a window become those of the sequence.
  void adopt(int slot, int number, int64_t start, int64_t end) {
    branches_->adopt(executor_, slot, number, state_->table(slot), start, end);
  }

  // A chunk of the prompt of the slot that joins, up to `limit`; with_last as above.
  void push_chunk(int64_t limit, bool with_last) {
    const int b = state_->feeding;
    if (b < 0) return;
    push_prompt(b, state_->fed[b], std::min(state_->fed[b] + chunk(b), limit), with_last);
  }

  void forward() {
    if (segments.empty()) return;
    if (taps_ != nullptr) taps_->place(&segments);
    executor_->forward(segments.data(), static_cast<int>(segments.size()));
    if (taps_ != nullptr) taps_->take(segments);
    for (const Segment& segment : segments) {
      if (segment.logits == nullptr || segment.slot >= state_->num_slots) continue;
      if (!rows_.is_room(segment.slot, segment.logits)) continue;
      rows_.take(segment.slot, segment.start, segment.num_tokens, &scratch_);
    }
  }

  std::vector<Segment> segments;  // of the next pass

 private:
  // with_last: logits of the prompt's last token, where it is among these, or of all that are wanted.
  void push_prompt(int b, int64_t start, int64_t end, bool with_last) {
    if (start >= end) return;
    State& s = *state_;
    const bool wants_all = with_last && rows_.wants(b);
    const bool has_last = with_last && end == s.prompt_len[b];
    const auto num_logits = static_cast<int>(wants_all ? end - start : has_last ? 1 : 0);
    float* logits = wants_all ? rows_.room(b, num_logits) : has_last ? s.target_rows(b) : nullptr;
    push(b, s.tokens(b) + start, end - start, start, num_logits, logits);
  }

  int64_t longest() const { return kChunk + state_->gamma_max; }

  const int32_t* known(int slot, const int32_t* token_ids, int64_t count) {
    if (known_.empty()) return token_ids;
    int32_t* out = known_.data() + slot * longest();
    for (int64_t i = 0; i < count; ++i) {
      out[i] = ids_.empty() ? std::min(token_ids[i], executor_->vocab_size() - 1) : ids_[token_ids[i]];
    }
    return out;
  }

  Executor* const executor_;
  State* const state_;
  const Run* const run_;
  TapReader* const taps_;
  const std::vector<int32_t> ids_;
  PromptRows rows_;
  std::optional<Branches> branches_;  // of more windows than one
  std::vector<int64_t> place_;        // [B] tokens of the prompts that prefill has fed, or found in the cache
  std::vector<int32_t> known_;        // [K * B, longest()], only if ids have to be replaced
  FilterScratch scratch_;
};

}  // namespace pearl
