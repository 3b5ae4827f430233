#include "coordinator/program_check.h"

#include <algorithm>
#include <string>

#include "core/checks.h"

namespace pearl {

namespace {

constexpr size_t kMostOps = 64;  // of a list: a trace has a row for each op of each round
constexpr size_t kTarget = 0;

// The ops of a list that compute.
std::vector<OpKind> steps_of(const std::vector<Op>& ops) {
  std::vector<OpKind> steps;
  for (const Op& op : ops) {
    if (!is_order(op.kind) && !is_fetch(op.kind)) steps.push_back(op.kind);
  }
  return steps;
}

void check_list(const std::vector<Op>& ops, int num_events) {
  if (ops.size() > kMostOps) {
    refuse("a list of the program has " + std::to_string(ops.size()) + " ops; it must have at most " +
           std::to_string(kMostOps));
  }
  for (const Op& op : ops) {
    if (is_order(op.kind) && (op.event < 0 || op.event >= num_events)) {
      refuse("event " + std::to_string(op.event) + " of the program is not one of its " +
             std::to_string(num_events));
    }
  }
}

void check_steps(const char* place, const std::vector<Op>& ops,
                 const std::vector<std::vector<OpKind>>& allowed, const char* wanted) {
  const std::vector<OpKind> steps = steps_of(ops);
  if (std::find(allowed.begin(), allowed.end(), steps) != allowed.end()) return;
  std::string found;
  for (const OpKind step : steps) found += (found.empty() ? "" : ", ") + std::string(op_name(step));
  refuse(std::string("the program's ") + place + " has the steps [" + found + "]; it must have " + wanted);
}

// Whether the first record of that event stands behind the first token.
bool follows_first_token(const Program& program, int event) {
  bool has_first = false;
  for (const Op& op : program.lanes[kTarget].prologue) {
    has_first = has_first || op.kind == OpKind::kFirst;
    if (op.kind == OpKind::kRecord && op.event == event) return has_first;
  }
  return true;  // recorded in a round, or never
}

bool is_recorded_by_draft(const LaneProgram& draft, int event) {
  const auto records = [event](const Op& op) { return op.kind == OpKind::kRecord && op.event == event; };
  return std::any_of(draft.prologue.begin(), draft.prologue.end(), records) ||
         std::any_of(draft.body.begin(), draft.body.end(), records);
}

void check_draft(const Program& program, const LaneProgram& draft) {
  check_steps("prologue of the draft's lane", draft.prologue, {{}, {OpKind::kPrefillContext}},
              "prefill context alone, or none");
  check_steps("body of the draft's lane", draft.body, {{OpKind::kDraft}, {}}, "draft alone, or none");
  if (steps_of(draft.body).empty()) return;
  std::vector<Op> before = draft.prologue;
  for (const Op& op : draft.body) {
    if (op.kind == OpKind::kDraft) break;
    before.push_back(op);
  }
  const bool is_behind = std::any_of(before.begin(), before.end(), [&](const Op& op) {
    return op.kind == OpKind::kWait && follows_first_token(program, op.event) &&
           !is_recorded_by_draft(draft, op.event);
  });
  if (!is_behind) {
    refuse(
        "the program drafts before its first token: the draft's lane must wait for an event that the "
        "target's "
        "lane records behind first");
  }
}

enum Fields : unsigned { kTokenIds = 1, kTargetLogits = 2, kDraftTokenIds = 4 };

// The fields of both lanes that an op reads and writes. Prompts are not among them: they are only read.
struct Access {
  unsigned reads = 0, writes = 0;
};

Access access_of(OpKind kind) {
  switch (kind) {
    case OpKind::kPrefill:
      return {0, kTargetLogits};
    case OpKind::kFirst:
      return {kTokenIds | kTargetLogits, kTokenIds};
    case OpKind::kDraft:
      return {kTokenIds, kDraftTokenIds};
    case OpKind::kScore:
      return {kTokenIds, kTargetLogits};
    case OpKind::kScoreWindow:
      return {kTokenIds | kDraftTokenIds, kTargetLogits};
    case OpKind::kVerify:
      return {kTokenIds | kTargetLogits | kDraftTokenIds, kTokenIds};
    default:
      return {};
  }
}

// Runs the ops of a few rounds in one order. A wait depends on a count only, so one order decides for all.
// Each step has a vector clock: entry i says how many steps of lane i have ended before it.
class Simulation {
 public:
  explicit Simulation(const Program& program)
      : program_(program), lanes_(program.lanes.size()), records_(program.num_events) {
    for (Lane& lane : lanes_) {
      lane.clock.assign(lanes_.size(), 0);
      lane.waits.assign(program.num_events, 0);
    }
  }

  void run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t lane = 0; lane < lanes_.size(); ++lane) {
        while (advance(lane)) moved = true;
      }
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      const Op* const op = next(lane);
      if (op == nullptr) continue;
      refuse("the program deadlocks: in round " + std::to_string(lanes_[lane].round) + " the " + name(lane) +
             " lane waits for event " + std::to_string(op->event) + ", which no lane records");
    }
    for (const Step& one : steps_) {
      for (const Step& other : steps_) {
        if (other.lane > one.lane) check_pair(one, other);
      }
    }
  }

 private:
  static constexpr int kRounds = 4;
  using Clock = std::vector<int>;
  struct Lane {
    int round = 0;
    size_t at = 0;
    Clock clock;
    std::vector<size_t> waits;  // [num_events]
  };
  struct Step {
    size_t lane;
    int round;
    OpKind kind;
    Clock clock;
  };

  static std::string name(size_t lane) { return lane == kTarget ? "target" : "draft"; }

  const Op* next(size_t index) {
    Lane& lane = lanes_[index];
    const LaneProgram& lists = program_.lanes[index];
    for (;; ++lane.round, lane.at = 0) {
      const std::vector<Op>& ops = lane.round == 0 ? lists.prologue : lists.body;
      if (lane.at < ops.size()) return &ops[lane.at];
      if (lane.round == kRounds) return nullptr;
    }
  }

  bool advance(size_t index) {
    const Op* const op = next(index);
    if (op == nullptr) return false;
    Lane& lane = lanes_[index];
    if (op->kind == OpKind::kWait) {
      const std::vector<Clock>& records = records_[op->event];
      const size_t seen = lane.waits[op->event];
      if (records.size() <= seen) return false;
      ++lane.waits[op->event];
      for (size_t i = 0; i < lane.clock.size(); ++i) {
        lane.clock[i] = std::max(lane.clock[i], records[seen][i]);
      }
    } else if (op->kind == OpKind::kRecord) {
      records_[op->event].push_back(lane.clock);
    } else {
      steps_.push_back({index, lane.round, op->kind, lane.clock});
      ++lane.clock[index];
    }
    ++lane.at;
    return true;
  }

  static void check_pair(const Step& one, const Step& other) {
    const Access mine = access_of(one.kind), theirs = access_of(other.kind);
    const unsigned shared = (mine.writes & (theirs.reads | theirs.writes)) | (mine.reads & theirs.writes);
    const bool ordered =
        other.clock[one.lane] > one.clock[one.lane] || one.clock[other.lane] > other.clock[other.lane];
    if (shared == 0 || ordered) return;
    const auto text = [](const Step& step) {
      return std::string(op_name(step.kind)) + " of the " + name(step.lane) + " lane (round " +
             std::to_string(step.round) + ")";
    };
    const char* const field = (shared & kTokenIds) != 0       ? "token_ids"
                              : (shared & kTargetLogits) != 0 ? "target_logits"
                                                              : "draft_token_ids";
    refuse("the program races: " + text(one) + " and " + text(other) + " share " + field +
           " and no event orders them");
  }

  const Program& program_;
  std::vector<Lane> lanes_;
  std::vector<std::vector<Clock>> records_;  // [num_events][]
  std::vector<Step> steps_;
};

}  // namespace

void check_order(const Program& program) { Simulation(program).run(); }

void check_program(const Program& program, size_t num_lanes) {
  if (program.lanes.empty() || program.lanes.size() > num_lanes) {
    refuse("the program has " + std::to_string(program.lanes.size()) + " lanes; this coordinator has " +
           std::to_string(num_lanes));
  }
  check_between("num_events of the program", program.num_events, 0,
                static_cast<int64_t>(2 * num_lanes * kMostOps));
  for (const LaneProgram& lane : program.lanes) {
    check_list(lane.prologue, program.num_events);
    check_list(lane.body, program.num_events);
  }
  const LaneProgram& target = program.lanes[kTarget];
  check_steps("prologue of the target's lane", target.prologue, {{OpKind::kPrefill, OpKind::kFirst}},
              "prefill, then first");
  check_steps("body of the target's lane", target.body,
              {{OpKind::kScore, OpKind::kVerify}, {OpKind::kScoreWindow, OpKind::kVerify}},
              "score or score window, then verify");
  for (size_t lane = 1; lane < program.lanes.size(); ++lane) check_draft(program, program.lanes[lane]);
}

}  // namespace pearl
