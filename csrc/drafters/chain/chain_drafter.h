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
  // pool_tokens: see LookupDrafter. cost: of a pass of the model, in steps of the target.
  // Throws Failure(kRequest) for a cost that is negative or more than 1000.
  ChainDrafter(std::shared_ptr<ModelDrafter> model, int64_t pool_tokens, double cost);

  bool wants_own_words() const override { return true; }
  int block_size() const override { return model_->block_size(); }
  void attach(const std::string& lane, const State& state) const override { model_->attach(lane, state); }
  void start(State* state, Run* run) override;
  void prefill() override { model_->prefill(); }
  void draft() override;

  // Of the lookup's indices; only while no run goes on.
  int64_t bytes() const { return lookup_.bytes(); }

  // For measurements, between runs: whether the lookup is asked.
  void set_looks_up(bool looks_up) { looks_up_ = looks_up; }

 private:
  struct Drafted {
    int64_t position;
    int32_t token;
    bool is_first;  // of its window, but for tokens that are forced
  };
  struct Slot {
    uint64_t request_id = 0;
    bool is_used = false;
    std::vector<Drafted> drafted;  // by the model, not judged yet
    // The model's windows whose first draft was judged, and its drafts that stood: half of both go when there
    // are kMostWindows, so that the last ones count most.
    int windows = 0, stood = 0;
    int streak = 0;  // windows of the lookup on final tokens, since the model's last
  };

  void learn(int slot);  // from the verdict on the last windows
  bool takes_lookup(int slot, const LookupDrafter::Proposal& proposal, int room) const;
  void note_model(int slot);  // what the model has drafted

  const std::shared_ptr<ModelDrafter> model_;
  LookupDrafter lookup_;
  const int64_t cost_;  // of kOne
  bool looks_up_ = true;
  std::vector<Slot> slots_;
  std::vector<char> has_window_;  // [B] by the lookup

  State* state_ = nullptr;  // set by start
};

}  // namespace pearl
