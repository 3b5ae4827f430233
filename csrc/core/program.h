// Programs as data: for each lane a list of ops that runs once, and one that runs every round.
// The lists themselves are written in pearl_rt/strategy/program.py.
#pragma once

#include <cstddef>
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

// The name of an op in a program, and in a trace.
struct OpName {
  OpKind kind;
  const char* name;
  const char* trace;
};

inline constexpr OpName kOpNames[] = {
    {OpKind::kPrefill, "prefill", "prefill"},
    {OpKind::kPrefillContext, "prefill context", "prefill"},
    {OpKind::kFirst, "first", "first"},
    {OpKind::kDraft, "draft", "draft"},
    {OpKind::kScore, "score", "score"},
    {OpKind::kScoreWindow, "score window", "score"},
    {OpKind::kVerify, "verify", "verify"},
    {OpKind::kFetchWindow, "fetch window", "fetch"},
    {OpKind::kFetchVerdict, "fetch verdict", "fetch"},
    {OpKind::kRound, "round", "round"},
    {OpKind::kRecord, "record", "record"},
    {OpKind::kWait, "wait", "wait"},
};

static_assert(kOpNames[static_cast<size_t>(OpKind::kWait)].kind == OpKind::kWait, "in the order of OpKind");

inline const OpName& name_of(OpKind kind) { return kOpNames[static_cast<size_t>(kind)]; }
inline const char* op_name(OpKind kind) { return name_of(kind).trace; }

inline bool is_fetch(OpKind kind) { return kind == OpKind::kFetchWindow || kind == OpKind::kFetchVerdict; }
inline bool is_verdict(OpKind kind) { return kind == OpKind::kFirst || kind == OpKind::kVerify; }
// Whether an op orders the lanes, and computes nothing.
inline bool is_order(OpKind kind) { return kind == OpKind::kRecord || kind == OpKind::kWait; }

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
