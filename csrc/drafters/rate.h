// How often drafts of a kind stood. Half of the counts go when there are 64: the last ones count most.
#pragma once

namespace pearl {

struct Rate {
  static constexpr int kMost = 64;  // more than it ever counts
  int stood = 0, judged = 0;

  void add(bool stands) {
    stood += stands ? 1 : 0;
    if (++judged < kMost) return;
    stood /= 2;
    judged /= 2;
  }
};

}  // namespace pearl
