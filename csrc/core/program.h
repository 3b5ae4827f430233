// Programs as data: for each lane a list of ops that runs once, and one that runs every round.
// The lists themselves are written in pearl_rt/strategy/program.py.
#pragma once

#include <string>
#include <vector>

namespace pearl {

enum class OpKind {
  kPrefill,         // feed the whole prompt; keep the logits of its last token
  kPrefillContext,  // feed the prompt but for its last token
  kFirst,           // commit the first token from the prefill's logits
  kDraft,           // fill the next window
  kScore,           // logits of the pending positions and one more
  kScoreWindow,     // the same, and of the new window's
  kVerify,          // judge, commit, publish
  kFetchWindow,     // the draft's window, into the target's memory
  kFetchVerdict,    // what the target committed, into the draft's memory
  kRound,           // all ops of a round at once, in traces only
  kRecord,          // event += 1
  kWait,            // until the event has been recorded once more than this lane has waited for it
};

inline bool is_fetch(OpKind kind) { return kind == OpKind::kFetchWindow || kind == OpKind::kFetchVerdict; }

inline const char* op_name(OpKind kind) {
  switch (kind) {
    case OpKind::kPrefill:
    case OpKind::kPrefillContext:
      return "prefill";
    case OpKind::kFirst:
      return "first";
    case OpKind::kDraft:
      return "draft";
    case OpKind::kScore:
    case OpKind::kScoreWindow:
      return "score";
    case OpKind::kVerify:
      return "verify";
    case OpKind::kFetchWindow:
    case OpKind::kFetchVerdict:
      return "fetch";
    case OpKind::kRound:
      return "round";
    case OpKind::kRecord:
      return "record";
    case OpKind::kWait:
      return "wait";
  }
  return "?";
}

struct Op {
  OpKind kind;
  int event = -1;  // record and wait only
};

struct LaneProgram {
  std::vector<Op> prologue;
  std::vector<Op> body;
  bool empty() const { return prologue.empty() && body.empty(); }
};

struct Program {
  int num_events = 0;
  std::vector<LaneProgram> lanes;  // [num_lanes], lane 0 is the target's

  bool drafts() const {
    for (const LaneProgram& lane : lanes) {
      for (const Op& op : lane.body) {
        if (op.kind == OpKind::kDraft) return true;
      }
    }
    return false;
  }
};

}  // namespace pearl
