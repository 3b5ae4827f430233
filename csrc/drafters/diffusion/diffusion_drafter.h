// The kind `diffusion`: a window of mask tokens gets its tokens in a few passes of a model, the surest places
// first (SpecDiff, arXiv 2408.05636). The drafts are certain.
// pearl_rt/reference/drafters/diffusion.py is its definition, token for token.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "drafters/model_drafter.h"

namespace pearl {

class DiffusionDrafter : public ModelDrafter {
 public:
  // num_passes: of a window, at most: each gives one place at least its token. Throws Failure(kRequest) for a
  // mask token outside the vocabulary, and for fewer passes than one.
  DiffusionDrafter(std::shared_ptr<Executor> executor, int32_t mask_token, int num_passes);

  bool branches() const override { return false; }  // its windows are filled whole, and not from their front
  int num_passes() const override { return num_passes_; }
  bool ends_windows() const override { return false; }
  void start(State* state, Run* run) override;

 private:
  struct Place {
    bool has_token = false;  // else the window has a guess
    double doubt = 0;        // 1 / the probability of the guess
  };
  // The window of a slot, but for the tokens that the form of the answer forces at its front: these are text.
  struct Filling {
    int pass = 0;  // that comes next
    int num_filled = 0;
    std::vector<Place> places;
  };

  void catch_up(int slot) override;
  // The first pass feeds what the cache lacks of the text, and a mask in place of each token of the window
  // but the last; each other one the window again, with the tokens that it has.
  void push_last(int slot) override;
  // Guesses the places that have no token, from the front, and keeps the surest guesses.
  bool take_rows(const Segment& segment, int vocab) override;

  // The likeliest token of a place, from the row where its logits are, and how doubtful it is. False: the row
  // has none.
  bool guess(int slot, int place, int vocab);
  void keep_surest(Filling* filling) const;

  const int32_t mask_token_;
  const int num_passes_;

  // Set by start.
  std::vector<Filling> fillings_;  // [B]
  std::vector<int32_t> fed_;       // [B, gamma_max] tokens of a pass
};

}  // namespace pearl
