// The verdict on one window: how many draft tokens stand, and which token follows them.
// Knows nothing of pending, windows or strategies: the coordinator says which rows and positions.
// numpy's twin: pearl_rt/reference/judge.py, bit for bit.
#pragma once

#include <cstdint>
#include <string>

#include "sampling/sampling.h"
#include "sampling/transform.h"

namespace pearl {

enum class JudgeKind {
  kRejection,  // accept x with min(1, p(x) / q(x)), recover from norm(max(p - q, 0))   (Leviathan et al.,
               // 2023)
  kCoupled,    // accept while the target, sampling with the draft's own noise, picks x  (Daliri et al., 2024)
};

const char* name_of(JudgeKind kind);
// Throws Failure(kRequest) for a name that no judge has.
JudgeKind judge_from(const std::string& name);

struct JudgeArgs {
  const float* target_logits;  // [num_draft + has_bonus, vocab], row-major
  const float* const*
      draft_logits;                // [num_draft] pointers to rows of draft_vocab; read by kRejection at
                                   // temperature > 0 only. nullptr: the draft was certain, all of q is on it
  const int32_t* draft_token_ids;  // [num_draft], each in [0, vocab)
  int num_draft;                   // judged rows; 0 makes the bonus row the only one (ar, first token)
  bool has_bonus;                  // row num_draft gives a token if all stand
  int vocab;                       // the target's
  int draft_vocab = 0;             // entries that the draft sampled from: min(target's, draft's); 0 = vocab
  int64_t position;                // absolute position of the first judged token
  float temperature;               // 0 = greedy, for both kinds
  uint64_t seed;
  JudgeKind kind;
  // Not null: the target's rows are judged as a request transforms them; the draft's come transformed, as
  // they were when it sampled from them.
  const TransformedRows* transformed = nullptr;
};

struct Verdict {
  int accept_len;      // draft tokens that stand, without the recovered one
  int32_t next_token;  // recovered, or bonus, or -1 when all stand and there is no bonus row
  int bad_row;  // -1, or the row whose logits (target's or draft's) or candidate cannot be used; then the
                // rest is void
};

// The purpose under which the draft samples its tokens, for `sample`.
Purpose draft_purpose(JudgeKind kind);
// The purpose under which the target samples alone: ar, the first token, the bonus token.
Purpose target_purpose(JudgeKind kind);

// Reads rows in order and stops at the first rejection: rows behind it are never looked at.
Verdict judge(const JudgeArgs& args);

}  // namespace pearl
