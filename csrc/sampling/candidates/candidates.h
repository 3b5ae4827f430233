// Several drafts for the first place of a window: how they are drawn from one row, and which of them stands.
// Knows nothing of windows: behind the one that stands its own window is judged like any other.
// numpy's twin: pearl_rt/reference/candidates.py, bit for bit, which says why the law is kept.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/judge.h"

namespace pearl {

// At most `count` different tokens with the largest keys, logits / temperature + Gumbel noise, into `out`,
// largest first, but for `first`, which sample() gave: it comes before them. -> how many. They are drawn one
// by one without replacement; greedy they are the likeliest.
int draw_candidates(const float* logits /*[vocab]*/, int vocab, float temperature, uint64_t seed,
                    int64_t position, Purpose purpose, int32_t first, int count, int32_t* out /*[count]*/);

struct CandidateArgs {
  const float* target;       // [vocab] the row as it is judged
  const float* draft;        // [draft_vocab] the row that they were drawn from
  const int32_t* token_ids;  // [num] in the order of draw_candidates
  int num;
  int vocab;
  int draft_vocab;
  int64_t position;
  float temperature;
  uint64_t seed;
  JudgeKind kind;
};

struct Choice {
  int taken;           // the candidate that stands, or -1
  int32_t next_token;  // then the token in their place; -1 too if a row or a candidate cannot be used
};

class Candidates {
 public:
  Choice choose(const CandidateArgs& args);

 private:
  Choice try_in_turn(const CandidateArgs& args, const RowScan& target, const RowScan& draft);

  std::vector<float> p_, q_;  // [vocab] what is left of each; memory that calls share
};

}  // namespace pearl
