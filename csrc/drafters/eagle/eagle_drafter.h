// The kind `eagle3`: a head of one layer drafts from what the target computed at the committed tokens, and
// behind them from what it computed itself (arXiv 2503.01840).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "drafters/eagle/tap_rows.h"
#include "drafters/model_drafter.h"

namespace pearl {

class EagleDrafter : public ModelDrafter {
 public:
  // target_ids: the target's id of each of the head's; none: they are the same. Throws Failure(kRequest) for
  // others than the head has rows, for an id outside its vocabulary, and as TapRows does.
  EagleDrafter(std::shared_ptr<Executor> head, std::vector<int32_t> target_ids);

  // What the target's lane is to be made with.
  std::shared_ptr<TapRows> taps() const { return taps_; }

  // The taps of a prompt that is found in the KV cache are not.
  bool finds_prefixes() const override { return false; }
  bool branches() const override { return false; }  // it is fed what the target computed at one window
  bool is_fed_each_round() const override { return true; }
  void start(State* state, Run* run) override;
  void prefill() override {}  // the target's lane feeds the prompts, as it goes through them

 private:
  void feed_joiner(int) override {}
  void catch_up(int slot) override;
  // Without a window the head is fed too: taps are kept until the next score.
  void follow(int slot) override;
  // First the tokens that were committed since the last window, with the target's taps; then those of the
  // window one by one, as each row is fed what the row before it gives.
  void push_last(int slot) override;

  const std::shared_ptr<TapRows> taps_;
  std::vector<int32_t> own_fed_;  // [B] tokens of the window that the head was fed; -1: nothing yet
};

}  // namespace pearl
