// The kinds `model` and `parallel`: a small model with a KV cache of its own drafts a window token by token,
// or in one pass whose last rows are of mask tokens, and keeps the rows that it sampled from.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/feeder.h"
#include "core/checks.h"
#include "core/executor.h"
#include "drafters/drafter.h"
#include "drafters/stop_rule.h"
#include "sampling/transform.h"

namespace pearl {

class ModelDrafter : public Drafter {
 public:
  // mask_token: of a model that was trained to fill a window in one pass (PARD, arXiv 2504.18583).
  // Throws Failure(kRequest) for one outside its vocabulary.
  explicit ModelDrafter(std::shared_ptr<Executor> executor, std::optional<int32_t> mask_token = {})
      : executor_(std::move(executor)), mask_token_(mask_token) {
    check_between("mask_token", mask_token.value_or(0), 0, executor_->vocab_size() - 1);
  }

  int block_size() const override { return executor_->block_size(); }
  bool drafts_at_once() const { return mask_token_.has_value(); }
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
  void draft() override { draft_but({}); }

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

  const std::shared_ptr<Executor> executor_;
  bool lacks_ids_ = false;  // a row may have a chance for no token that a request allows

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

  // The token at a position whose logits are in `row`, which is transformed in place first: what was sampled
  // from is what is judged. `drafted` tokens of the window stand before it.
  int32_t sample_draft(int slot, int64_t position, int drafted, float* row, int vocab);

  const std::optional<int32_t> mask_token_;

  // Set by start.
  Run* run_ = nullptr;
  std::vector<int32_t> most_;      // [B] of window_len_, with forced tokens
  std::vector<WindowStop> stops_;  // [B]
  std::vector<int64_t> fed_;       // [B] draft_fed once this op's passes are done; -1: its window says
  std::vector<int32_t>
      feed_;  // [B, kChunk + gamma_max] tokens of a pass: what the cache lacks, the window's, then masks
};

}  // namespace pearl
