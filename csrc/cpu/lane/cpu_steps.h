// The ops of a round on the CPU: what draft, score and verify do with an executor and the state.
// Knows nothing of threads or order; each op loops over the slots and skips those that do not run.
#pragma once

#include <string>
#include <vector>

#include "coordinator/run.h"
#include "coordinator/state.h"
#include "core/executor.h"
#include "cpu/lane/prompt_rows.h"
#include "sampling/transform.h"

namespace pearl {

class CpuSteps {
 public:
  CpuSteps(Executor* executor, State* state, Run* run);

  // Feeds the prompt to the executor, in chunks so that a stop is heard. with_last: its last token too, and
  // its logits go to target row 0; without, all but the last (nothing, for a prompt of one token).
  void prefill(bool with_last);

  // Commits token prompt_len, sampled from target row 0.
  void first();

  // Fills the window that follows token committed + pending. Its first step feeds what the draft's cache
  // lacks, and at least the last two tokens that the window continues from: after a bonus token the cache
  // lacks both, else one row is written again unchanged. A cache that lacks more than a chunk, after rounds
  // without drafts, is fed one, and the window stays empty. The same pass feeds a chunk of the prompt of
  // the slot that joins.
  void draft();

  // Row r of the target is for position committed + r: r = 0..pending, and with the window up to its end.
  // Rows stop at max_total_len: no position at or past it is ever fed or judged. The same pass feeds a chunk
  // of the prompt of the slot that joins; the last chunk gives row 0.
  void score(bool include_window);

  // Judges as many rows as were scored: pending tokens first, then the window's. A row without a candidate
  // gives a bonus token. Commits, cuts at the first stop id or at the limit, publishes; lets cancelled
  // requests go, takes the KV blocks of ended ones back, lets waiting ones in as far as blocks go, says how
  // far to draft beside so many, and ends the run when there are none. Rollback is writing two integers. The
  // ring must have room for a result of each slot.
  void verify(bool admits);

 private:
  // The ids as this model can be fed them: a draft padded to fewer rows than the target has no row for some
  // of the target's ids, and gets its last one instead.
  const int32_t* known(int slot, const int32_t* token_ids, int64_t count);
  // To segments_, with the slot's KV blocks.
  void push(int slot, const int32_t* token_ids, int64_t num_tokens, int64_t start, int num_logits,
            float* logits);
  // Of a prompt: tokens [start, stop). with_logits: of the last one, where it is the prompt's, or of all.
  void push_prompt(int slot, int64_t start, int64_t stop, bool with_logits);
  void push_chunk(int64_t limit, bool with_logits);  // of the slot that is fed
  void take_prompt_rows();                           // of the pass that was made
  void push_missing(int slot, int64_t end);          // a chunk of what the draft's cache lacks
  void judge_slot(int slot);
  // Throws Failure(kRequest) where the lanes of a program went out of step.
  void check_rows(int slot, int64_t rows) const;
  void check_window(int slot, int64_t pending, int64_t window_len) const;
  void advance_feeding();
  void admit();
  void let_go();
  void end(int slot, FinishReason reason, std::string error);
  // The draft's token at a position whose logits are in `row`, which is transformed in place first: what was
  // sampled from is what is judged. `drafted` tokens of the window stand before it.
  int32_t sample_draft(int slot, int64_t position, int drafted, float* row, int vocab);
  // Commits tokens already in token_ids up to `committed`, or fewer: publishes what stands.
  void commit(int slot, int64_t committed, int64_t pending);
  void publish(int slot);

  Executor* const executor_;
  State* const state_;
  Run* const run_;
  std::vector<Segment> segments_;
  std::vector<int32_t> window_len_;       // [B]
  std::vector<int64_t> end_;              // [B] tokens before the window that is drafted
  std::vector<int32_t> fed_;              // [B, gamma_max + 1] last committed token and the window
  std::vector<int32_t> known_;            // [B, prefill chunk], only if ids have to be replaced
  std::vector<int64_t> place_;            // [B] tokens of the prompts that the prologue has fed
  std::vector<const float*> draft_rows_;  // [2 * gamma_max]
  RoundResult result_;
  PromptRows prompt_rows_;
  Transformer transformer_;
  FilterScratch scratch_;
};

}  // namespace pearl
