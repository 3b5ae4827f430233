// The kinds `model` and `parallel`: a small model with a KV cache of its own drafts a window token by token,
// or in one pass whose last rows are of mask tokens, and keeps the rows that it sampled from.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/feeder.h"
#include "core/executor.h"
#include "core/step_costs.h"
#include "drafters/draft_ids.h"
#include "drafters/drafter.h"
#include "drafters/stop_rule.h"
#include "sampling/candidates/ranks.h"
#include "sampling/transform.h"

namespace pearl {

class ModelDrafter : public Drafter {
 public:
  // mask_token: of a model that was trained to fill a window in one pass (PARD, arXiv 2504.18583).
  // Throws Failure(kRequest) for one outside its vocabulary, for one beside ids.draft_of, and as ids.check().
  explicit ModelDrafter(std::shared_ptr<Executor> executor, std::optional<int32_t> mask_token = {},
                        DraftIds ids = {});

  int block_size() const override { return executor_->block_size(); }
  bool branches() const override { return !mask_token_ && ids_.target_of.empty(); }
  // Passes that fill a window, at most; 0: one for each draft.
  virtual int num_passes() const { return mask_token_ ? 1 : 0; }
  // Whether a StopRule may end its windows.
  virtual bool ends_windows() const { return true; }
  void attach(const std::string& lane, const State& state) const override;
  void start(State* state, Run* run) override;
  void prefill() override;

  // A window's first step feeds what the cache lacks, and at least the last two tokens that the window
  // continues from: after a bonus token the cache lacks both, else one row is written again unchanged. A
  // cache that lacks more than a chunk, after rounds without drafts, is fed one, and the window stays empty.
  // The same pass feeds a chunk of the prompt of the slot that joins. Tokens that the form of an answer
  // forces are certain, and are fed together. A request's StopRule may end its window before any row. With a
  // mask token there is one pass: it feeds a mask in place of each token of the window but the last, and
  // each row is sampled as far as the window goes. Masks are no text: draft_fed is what is before them.
  //
  // With State::candidates the first row of a window gives as many different tokens, and each begins a
  // window. The passes behind it have a row of each. The cache keeps what is before the window alone:
  // which of them stands is not known.
  void draft() override { draft_but({}); }

  // Whether a pass follows each verdict, with a window of its own or without.
  virtual bool is_fed_each_round() const { return false; }

  // Between runs. Of a slot that adapts as many windows lie beside one another as have the most tokens for
  // their time. Without scores, as at first: as many as there may be.
  // Throws Failure(kRequest) for a time that is none, and for one table without the other.
  void set_branch_costs(StepCosts costs);
  // For measurements, between runs: whether there may be more than one.
  void set_branches(bool branches) { may_branch_ = branches; }

  // What the rule kAuto weighs windows by; it outlives this.
  void weigh_by(const StepCosts* costs) { costs_ = costs; }

  // The same, but for slots whose window another drafter has filled. They are not fed: their cache forgets
  // what was rejected, and is behind the text until the next window of the model's own. has_window: [B], or
  // empty for none.
  void draft_but(const std::vector<char>& has_window);

 protected:
  // A chunk of the prompt of the slot that joins, which may be fed in the pass of others.
  virtual void feed_joiner(int slot);
  // Before a window: a chunk of what the cache lacks, if that is more than a chunk; the window then stays
  // empty.
  virtual void catch_up(int slot);
  // In place of a window that no pass of its own is needed for.
  virtual void follow(int) {}
  // What the cache lacks, up to the last token of the window, and masks for the rows behind it.
  virtual void push_last(int slot);
  // The window goes on with tokens of the rows of a pass -> whether one more pass follows.
  virtual bool take_rows(const Segment& segment, int vocab);
  // The window goes on with the tokens that the form of the answer has next anyway: they cost no pass, and so
  // come on top of its length. -> whether a pass follows.
  bool draft_forced(int slot);
  // The rows that are wanted of the last segment go where those of the window from `position` on belong.
  void send_rows(int slot, int64_t position);

  // Where a pass puts its first row of logits of a slot, at a position: in the state, or where they wait to
  // become rows of the target's vocabulary.
  float* logits_at(int slot, int64_t position);

  const std::shared_ptr<Executor> executor_;
  const DraftIds ids_;

  // Set by start.
  State* state_ = nullptr;
  std::optional<Feeder> feeder_;
  std::optional<Transformer> transformer_;
  std::vector<int32_t> window_len_;  // [B]
  std::vector<int64_t> end_;         // [B] tokens before the window that is drafted
  std::vector<int32_t> drafted_;     // [B] tokens of the window so far

 private:
  // The window ends: its rule says so, or no token of the draft's is allowed.
  static constexpr int32_t kNothing = -2;

  // The token at a position of a window whose logits are in `row`, which is transformed in place first: what
  // was sampled from is what is judged. `drafted` tokens of the window stand before it.
  int32_t sample_draft(int slot, int number, int64_t position, int drafted, float* row, int vocab);
  // From the verdict on the windows of a slot: which candidate stood.
  void learn_ranks(int slot);
  // Behind window 0's first token: those of the other windows. Then what a pass feeds for these, and what
  // they take of it.
  void branch_off(int slot, int vocab);
  void push_branches(int slot);
  void take_branch(const Segment& segment, int vocab);
  // The row of a position out of the draft's logits: what the draft has no id for has no chance.
  void spread(const float* logits, float* row) const;

  const std::optional<int32_t> mask_token_;
  const int head_rows_;
  const StepCosts* costs_ = nullptr;
  StepCosts branch_costs_;
  bool may_branch_ = true;

  // Set by start.
  Run* run_ = nullptr;
  std::vector<int32_t> most_;      // [B] of window_len_, with forced tokens
  std::vector<WindowStop> stops_;  // [B]
  struct Branches {
    uint64_t request_id = 0;
    CandidateRanks ranks;
    int64_t position = -1;  // of the candidates, or -1: their verdict is known, or there were none
    std::vector<int32_t> candidates{};  // for it, those without a window too
  };
  std::vector<Branches> branched_;  // [B]
  std::vector<float> rows_;         // [B, rows of a pass, head_rows_], if ids differ
  int rows_of_a_pass_ = 1;
  std::vector<int64_t> fed_;  // [B] draft_fed once this op's passes are done; -1: its window says
  std::vector<int32_t>
      feed_;  // [B, kChunk + gamma_max] tokens of a pass: what the cache lacks, the window's, then masks
};

}  // namespace pearl
