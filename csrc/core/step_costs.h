// What windows are weighed by: how long steps take, measured before the run, so that these are constants of
// it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/checks.h"

namespace pearl {

struct StepCosts {
  std::vector<int32_t> scores;  // [n - 1] of a score over n rows in all, in any unit; of more: the last
  std::vector<int32_t>
      windows;           // [n - 1] of a window of n drafts of a model for one sequence; of more: the last
  bool at_once = false;  // one pass of the model has the rows of a window
  int num_running = 1;   // sequences that are drafted for in this round

  bool known() const { return !scores.empty(); }
  // Throws Failure(kRequest) for a time that is none.
  void check() const {
    for (const auto* times : {&scores, &windows}) {
      for (const int32_t time : *times) check_between("a cost", time, 1, 1'000'000'000);
    }
  }
  int64_t score_of(size_t rows) const { return scores[std::min(rows, scores.size()) - 1]; }
  // Of a score, if each sequence has a window of that length.
  int64_t score(int window) const { return score_of(static_cast<size_t>(num_running) * (window + 1)); }
  // Of windows of the model, of `count` drafts for each sequence.
  int64_t window(int count) const {
    if (count == 0) return 0;
    const int64_t alone = windows[std::min<size_t>(count, windows.size()) - 1];
    const size_t rows = at_once ? count : 1;  // of a pass, for each sequence
    return alone * score_of(rows * num_running) / score_of(rows);
  }
  // The same, if one of the sequences has so many windows.
  int64_t score_beside(int window, int windows) const {
    return score_of(static_cast<size_t>(num_running + windows - 1) * (window + 1));
  }
  int64_t window_beside(int count, int num_windows) const {
    const int64_t alone = windows[std::min<size_t>(count, windows.size()) - 1];
    return alone * score_of(num_running + num_windows - 1) / score_of(1);
  }
};

}  // namespace pearl
