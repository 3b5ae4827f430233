// The target's ops of a round on the CPU: what score and verify do with an executor and the state.
// Knows nothing of threads or order; each op loops over the slots and skips those that do not run.
#pragma once

#include <string>
#include <vector>

#include "coordinator/feeder.h"
#include "coordinator/run.h"
#include "coordinator/state.h"
#include "core/executor.h"
#include "sampling/candidates/candidates.h"
#include "sampling/judge.h"
#include "sampling/transform.h"

namespace pearl {

class CpuSteps {
 public:
  // taps: of the passes; null: none are read.
  CpuSteps(Executor* executor, State* state, Run* run, TapReader* taps = nullptr);

  // Feeds the prompts; the logits of their last tokens go to target row 0.
  void prefill();

  // Commits token prompt_len, sampled from target row 0.
  void first();

  // Row r of the target is for position committed + r: r = 0..pending, and with the window up to its end.
  // Rows stop at max_total_len: no position at or past it is ever fed or judged. Windows beside the first are
  // fed too, behind the last committed token; their first row is that of window 0. The same pass feeds a
  // chunk of the prompt of the slot that joins; the last chunk gives row 0.
  void score(bool include_window);

  // Judges as many rows as were scored: pending tokens first, then the window's. A row without a candidate
  // gives a bonus token. Commits, cuts at the first stop id or at the limit, publishes; lets cancelled
  // requests go, takes the KV blocks of ended ones back, lets waiting ones in as far as blocks go, says how
  // far to draft beside so many, and ends the run when there are none. Rollback is writing two integers. The
  // ring must have room for a result of each slot.
  void verify(bool admits);

 private:
  void judge_slot(int slot);
  // The window whose first token stands, and the verdict on it; window 0 if none does. args: of window 0.
  Verdict judge_windows(int slot, JudgeArgs args);
  // Throws Failure(kRequest) where the lanes of a program went out of step.
  void check_rows(int slot, int64_t rows) const;
  void check_window(int slot, int64_t pending, int64_t window_len) const;
  // A row of the window that was judged.
  const float* judged_row(int slot, int64_t row) const {
    return state_->target_rows(slot, row == 0 ? 0 : taken_) + row * state_->vocab_size;
  }
  void advance_feeding();
  void admit();
  void let_go();
  void end(int slot, FinishReason reason, std::string error);
  // Why a row whose logits can be used leaves no token: "" unless the form of the answer is the reason.
  std::string form_text(int slot, int row) const;
  void keep_own_words(int slot, const Verdict& verdict);
  // Commits tokens already in token_ids up to `committed`, or fewer: publishes what stands.
  void commit(int slot, int64_t committed, int64_t pending);
  void publish(int slot);

  State* const state_;
  Run* const run_;
  Feeder feeder_;
  std::vector<int32_t> fed_;              // [B, K, gamma_max + 1] last committed token and each window
  std::vector<const float*> draft_rows_;  // [2 * gamma_max]
  RoundResult result_;
  Transformer transformer_;
  Candidates candidates_;
  std::vector<int32_t> firsts_;  // [K] first tokens of the windows
  int taken_ = 0;                // the window that judge_slot judged
  FilterScratch scratch_;
};

}  // namespace pearl
