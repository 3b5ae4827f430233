// Log-probabilities of a prompt's own tokens: where the logits of its chunks go, and what is kept of them.
// Knows rows and the state; not when a prompt is fed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "coordinator/state.h"
#include "sampling/logprobs.h"
#include "sampling/sampling.h"

namespace pearl {

class PromptRows {
 public:
  explicit PromptRows(State* state) : state_(state), rows_(state->num_slots) {}

  // The tokens of a slot's prompt that one pass feeds; multiples of it are where prompts are cut. Few where
  // the logits of all are wanted: a row is as long as the vocabulary.
  int64_t chunk(int slot) const { return wants(slot) ? 32 : kLongestChunk; }
  static constexpr int64_t kLongestChunk = 256;

  bool wants(int slot) const { return state_->num_prompt_logprobs[slot] >= 0; }

  // Room for the logits of so many rows of a slot that wants them.
  float* room(int slot, int64_t count) {
    rows_[slot].resize(static_cast<size_t>(count) * state_->vocab_size);
    return rows_[slot].data();
  }

  bool is_room(int slot, const float* logits) const { return logits == rows_[slot].data(); }

  // Reads what room() was filled with: the target's rows of positions [start, start + count). The row of the
  // prompt's last token goes to target row 0.
  void take(int slot, int64_t start, int64_t count, FilterScratch* scratch) {
    State& s = *state_;
    for (int64_t r = 0; r < count; ++r) {
      const float* row = rows_[slot].data() + static_cast<size_t>(r) * s.vocab_size;
      const int64_t next = start + r + 1;
      if (next == s.prompt_len[slot]) {
        std::copy(row, row + s.vocab_size, s.target_rows(slot));
      } else if (scan_row(row, s.vocab_size).usable) {
        append_logprobs(row, s.vocab_size, s.tokens(slot)[next], s.num_prompt_logprobs[slot], scratch,
                        &s.prompt_logprobs[slot]);
      } else if (s.bad_prompt[slot] < 0) {
        s.bad_prompt[slot] = next;
      }
    }
  }

 private:
  State* const state_;
  std::vector<std::vector<float>> rows_;  // [B][count, V], of slots that want them
};

}  // namespace pearl
