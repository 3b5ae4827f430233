// How many windows of a sequence lie beside one another: as many as have the most tokens for their time, by
// counts of which candidates stood before, in their order. Of one request.
// numpy's twin: Ranks of pearl_rt/reference/candidates.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "core/step_costs.h"

namespace pearl {

class CandidateRanks {
 public:
  // Of `most` windows of `length` drafts. A window behind the first costs its rows in the score, and a row in
  // each pass of the draft.
  int count(const StepCosts& costs, int most, int length) const {
    int best = 1;
    int64_t best_tokens = 0, best_time = 1, stands = 0;
    const int64_t rounds = rounds_ + kPrior;
    for (int windows = 1; windows <= most; ++windows) {
      const auto rank = static_cast<size_t>(windows) - 1;
      stands += (rank < hits_.size() ? hits_[rank] : 0) + hope(windows - 1);
      const int64_t tokens = rounds * (stood_ + kHalf) + stands * (stood_ + behind_ + 2 * kHalf);
      const int64_t time = costs.score_beside(length, windows) + costs.window_beside(length, windows);
      if (windows > 1 && tokens * best_time <= best_tokens * time) continue;
      best = windows;
      best_tokens = tokens;
      best_time = time;
    }
    return best;
  }

  // A window of a request that adapts -> whether the candidates behind the `count` that are used are looked
  // at as well, which costs a search of the row: at first always, and then now and then.
  bool looks(int count) {
    const int number = asked_++;
    return count > 1 || number < kFirst || number % kSeldom == 0;
  }

  // The verdict on a place is known. token: what stands there; candidates: of it; window(r), token r of them
  // being the first, what lies behind position by position: `text` begins with the token.
  template <typename Window>
  void learn(std::span<const int32_t> text, std::span<const int32_t> candidates, int num_windows,
             const Window& window) {
    ++rounds_;
    const auto found = std::find(candidates.begin(), candidates.end(), text[0]);
    if (found != candidates.end()) {
      const auto rank = static_cast<size_t>(found - candidates.begin());
      if (hits_.size() <= rank) hits_.resize(rank + 1);
      ++hits_[rank];
      if (static_cast<int>(rank) < num_windows) {
        const std::span<const int32_t> drafts = window(static_cast<int>(rank));
        ++stood_;
        for (size_t i = 1; i < std::min(drafts.size(), text.size()) && drafts[i] == text[i]; ++i) ++behind_;
      }
    }
    if (rounds_ < kMostRounds) return;
    for (int* count : {&rounds_, &stood_, &behind_}) *count /= 2;
    for (int& count : hits_) count /= 2;
  }

 private:
  static constexpr int kPrior = 16, kHalf = 4, kMostRounds = 64, kFirst = 16, kSeldom = 8;
  static int hope(int rank) { return rank == 0 ? 8 : rank == 1 ? 2 : 1; }  // of kPrior: rounds that it stood

  int asked_ = 0;
  int rounds_ = 0;         // whose candidates were looked at
  std::vector<int> hits_;  // by rank: of these, in how many the candidate stood, or would have
  int stood_ = 0;          // windows whose first draft stood
  int behind_ = 0;         // drafts behind these that did
};

}  // namespace pearl
