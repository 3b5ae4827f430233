// Two kinds in a chain: a lookup drafts where what it expects is worth more than a window of a model, which
// drafts else. For each slot and window anew; by counts only: no clock, and none of the noise that judges.
// pearl_rt/reference/drafters/chain.py is its definition, window for window, and says why the law is kept.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "drafters/drafter.h"
#include "drafters/lookup_drafter.h"
#include "drafters/model_drafter.h"

namespace pearl {

class ChainDrafter : public Drafter {
 public:
  // pool_tokens: see LookupDrafter. cost: of a pass of the model, in steps of the target. for_all: whether
  // the lookup is asked for each slot, and not only for those whose windows are weighed. Throws
  // Failure(kRequest) for a cost that is negative or more than 1000.
  ChainDrafter(std::shared_ptr<ModelDrafter> model, int64_t pool_tokens, double cost, bool for_all = true);

  bool wants_own_words() const override { return true; }
  bool finds_prefixes() const override { return model_->finds_prefixes(); }
  int block_size() const override { return model_->block_size(); }
  bool caches(const State& state) const override { return block_size() > 0 && has_model(state); }
  void attach(const std::string& lane, const State& state) const override { model_->attach(lane, state); }
  void start(State* state, Run* run) override;
  void prefill() override;
  void draft() override;

  // Of the lookup's indices; only while no run goes on.
  int64_t bytes() const { return lookup_.bytes(); }

  // Between runs. A slot that adapts then has what is worth most for its time: a window of the lookup, one of
  // the model, or none. As StepCosts has them; both empty: by weights read.
  void set_costs(std::vector<int32_t> scores, std::vector<int32_t> windows);

  // For measurements, between runs: whether the lookup is asked.
  void set_looks_up(bool looks_up) { looks_up_ = looks_up; }

 private:
  static constexpr int kMostWindows = 16;
  struct Drafted {
    int64_t position;
    int32_t token;
    bool is_first;  // of its window, but for tokens that are forced
  };
  struct Slot {
    uint64_t request_id = 0;
    bool is_used = false;
    std::vector<Drafted> drafted;  // by the model, not judged yet
    // The model's windows whose first draft was judged, or that its rule left empty, and its drafts that
    // stood: half of both go when there are kMostWindows, so that the last ones count most.
    int windows = 0, stood = 0;
    void add_window() {
      if (++windows < kMostWindows) return;
      windows /= 2;
      stood /= 2;
    }
    int streak =
        0;  // since the model's last window: kOfLookup for each of the lookup on final tokens, 1 for none
  };

  // Whether a run may use the model: not if none of its windows are the model's. It then has no prompt.
  bool has_model(const State& state) const;

  enum class Choice { kModel, kLookup, kNothing };

  void learn(int slot);  // from the verdict on the last windows
  bool asks(int slot) const;
  Choice choose(int slot, const LookupDrafter::Proposal& proposal, int room) const;
  bool takes_lookup(int slot, const LookupDrafter::Proposal& proposal, int room) const;
  bool ends_early(int slot) const;
  void note_model(int slot);  // what the model has drafted

  const std::shared_ptr<ModelDrafter> model_;
  LookupDrafter lookup_;
  const int64_t cost_;  // of kOne
  const bool for_all_;
  bool looks_up_ = true;
  std::vector<Slot> slots_;
  std::vector<char> has_window_;  // [B] by the lookup, or has none

  // Set by start.
  State* state_ = nullptr;
  bool has_model_ = true;
};

}  // namespace pearl
