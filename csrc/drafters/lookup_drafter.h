// The kind `lookup`: what followed the last tokens when they stood before, in the prompt, in the answer, in
// what the target said at rejected rows, and in earlier answers. No weights; the drafts are certain.
// By counts only: no clock, and none of the noise that judges.
// pearl_rt/reference/drafters/lookup.py is its definition, token for token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/step_costs.h"
#include "drafters/drafter.h"
#include "drafters/lookup_index.h"
#include "drafters/rate.h"

namespace pearl {

class LookupDrafter : public Drafter {
 public:
  static constexpr int kOne = 4096;  // a chance of 1

  // pool_tokens: of earlier answers that are kept, 0: none. Requests add to the pool and draft from it if
  // they share, and draft from it where drafts cannot change the text: greedy, or by the judge `coupled`.
  // leads: another kind drafts where this one's windows are not taken, as in drafters/chain. It learns from
  // all of them, so a doubtful draft waits for nothing. Rows behind a rejection then follow drafts that were
  // drawn, and are drawn again with the same noise: they are read where the pool is.
  explicit LookupDrafter(int64_t pool_tokens, bool leads = false);

  bool wants_own_words() const override { return true; }
  bool has_rows() const override { return false; }
  void attach(const std::string&, const State&) const override {}
  void start(State* state, Run* run) override;
  void prefill() override {}
  void draft() override;

  // A window as it lies in the state. Of kOne: how many drafts were likely to stand, forced ones left out,
  // and of a slot that adapts what a round with the window has in tokens.
  struct Proposal {
    int count = 0;
    int64_t expected = 0;
    int64_t tokens = kOne;
  };
  // A round begins: counts the slots that are drafted for.
  void begin_round();
  // Takes in what was committed, and drafts behind it for one slot that runs, at most `room` tokens and what
  // is forced. num_draft_tokens is the caller's.
  Proposal draft_slot(int slot, int room);

  // Of all indices; only while no run goes on.
  int64_t bytes() const;

  // Between runs. A slot that adapts has the window whose tokens are the most for their time, none too.
  // Without scores, as at first: windows are as long as they are likely to stand. Throws Failure(kRequest)
  // for a time that is none.
  void set_costs(StepCosts costs);
  const StepCosts& costs() const { return costs_; }
  bool weighs(int slot) const { return state_->adapts[slot] && costs_.known(); }

  // For measurements, between runs: whether every window is filled, with whatever token.
  void set_fills(bool fills) { fills_ = fills; }

 private:
  enum Source { kText, kWords, kPool, kNumSources };
  static constexpr int kClasses = 6;  // of lengths of matches: 1, 2, 3, 4 and 5, 6 to 8, longer

  struct Drafted {
    int64_t position;
    int32_t token;
    Source source;
    int length_class;
  };
  struct Slot {
    Slot(int64_t capacity, int64_t words) : text(capacity), words(words) {}
    bool is_used = false;
    uint64_t request_id = 0;
    int64_t prompt_len = 0;
    bool shares = false;
    LookupIndex text;   // prompt and answer, as far as committed
    LookupIndex words;  // the target's at rejected rows, each behind two committed tokens
    Rate rates[kNumSources][kClasses];
    std::vector<Drafted> drafted;  // not judged yet
    int quiet = 0;                 // rounds without a draft since the last one
    int rest = 0;                  // such rounds that are wanted before a doubtful draft
  };
  // Places of one source that go on from the text and what is drafted behind it.
  struct Search {
    const LookupIndex* index;
    Source source;
    LookupIndex::Match matches[LookupIndex::kMatches];
    int count;
  };
  struct Candidate {
    int32_t token;
    int length_class;
    int chance;  // of kOne: that it stands if those before it do
  };

  static int class_of(int length);
  static void forget(Slot* slot);
  void publish(Slot* slot);
  void take_in(int b, bool reads_words);  // what was committed since the last window
  void learn(int b);                      // from the verdict on the last window
  Proposal propose(int b, int room, bool reads_pool);
  Candidate best(const Slot& slot, const Search& search) const;
  static void find(Search* search, const std::vector<int32_t>& tail);

  const int64_t pool_tokens_;
  const bool leads_;
  bool fills_ = false;
  StepCosts costs_;
  LookupIndex pool_;
  std::vector<Slot> slots_;
  std::vector<int32_t> tail_;  // the last tokens, and those drafted behind them

  // Set by start.
  State* state_ = nullptr;
  int64_t capacity_ = 0;  // of each slot
};

}  // namespace pearl
