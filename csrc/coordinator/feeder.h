// Feeds one model from the state: tokens of the slots at their positions, with the KV blocks of each slot.
// Knows which prompts are fed, and nothing of windows or verdicts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "coordinator/run.h"
#include "coordinator/state.h"
#include "core/executor.h"

namespace pearl {

class Feeder {
 public:
  static constexpr int64_t kChunk = 256;  // tokens; multiples of it are where prompts are cut

  Feeder(Executor* executor, State* state, const Run* run) : executor_(executor), state_(state), run_(run) {
    segments.reserve(state->num_slots);
    if (executor->vocab_size() < state->vocab_size) known_.resize(state->num_slots * kChunk);
  }

  // All prompts in chunks, so that a stop is heard. with_last: their last tokens too, whose logits go to
  // target row 0; without, all but the last (nothing, for a prompt of one token). False: it was stopped.
  bool prefill(bool with_last) {
    State& s = *state_;
    for (int64_t start = 0;; start += kChunk) {
      if (run_->halted()) return false;
      segments.clear();
      for (int b = 0; b < s.num_slots; ++b) {
        const int64_t end = s.prompt_len[b] - (with_last ? 0 : 1);
        push_prompt(b, start, std::min(end, start + kChunk), with_last);
      }
      if (segments.empty()) return true;
      forward();
    }
  }

  // Tokens that follow each other at `start`, as this model can be fed them: a draft padded to fewer rows
  // than the target has no row for some of the target's ids, and gets its last one instead. At most a chunk.
  void push(int slot, const int32_t* token_ids, int64_t num_tokens, int64_t start, int num_logits,
            float* logits) {
    segments.push_back({slot, known(slot, token_ids, num_tokens), static_cast<int>(num_tokens), start,
                        num_logits, logits, state_->table(slot), state_->num_held[slot]});
  }

  // A chunk of the prompt of the slot that joins, up to `limit`; with_last as above.
  void push_chunk(int64_t limit, bool with_last) {
    const int b = state_->feeding;
    if (b < 0) return;
    push_prompt(b, state_->fed[b], std::min(state_->fed[b] + kChunk, limit), with_last);
  }

  void forward() {
    if (!segments.empty()) executor_->forward(segments.data(), static_cast<int>(segments.size()));
  }

  std::vector<Segment> segments;  // of the next pass

 private:
  void push_prompt(int b, int64_t start, int64_t end, bool with_last) {
    if (start >= end) return;
    const int num_logits = with_last && end == state_->prompt_len[b] ? 1 : 0;
    push(b, state_->tokens(b) + start, end - start, start, num_logits,
         num_logits > 0 ? state_->target_rows(b) : nullptr);
  }

  const int32_t* known(int slot, const int32_t* token_ids, int64_t count) {
    if (known_.empty()) return token_ids;
    int32_t* out = known_.data() + slot * kChunk;
    for (int64_t i = 0; i < count; ++i) out[i] = std::min(token_ids[i], executor_->vocab_size() - 1);
    return out;
  }

  Executor* const executor_;
  State* const state_;
  const Run* const run_;
  std::vector<int32_t> known_;  // [B, kChunk], only if ids have to be replaced
};

}  // namespace pearl
