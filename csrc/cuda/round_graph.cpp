#include "cuda/round_graph.h"

#include <algorithm>
#include <string>
#include <utility>

namespace pearl {

namespace {

constexpr size_t kMaxGraphs = 32;  // kept; a window and a judge of a program each

[[noreturn]] void refuse(const std::string& what) { throw Failure(FailureKind::kRequest, what); }

int64_t count(const std::vector<CudaLane*>& lanes, bool body, OpKind kind, int event) {
  int64_t total = 0;
  for (const CudaLane* lane : lanes) {
    for (const Op& op : body ? lane->program().body : lane->program().prologue) {
      total += op.kind == kind && op.event == event;
    }
  }
  return total;
}

// Adds the body's ops to a graph, lane by lane as far as their waits allow.
class Builder {
 public:
  explicit Builder(const std::vector<CudaLane*>& lanes)
      : lanes_(lanes), graph_(lanes.front()->context()), next_(lanes.size(), 0), last_(lanes.size()) {}

  CudaGraph build() {
    bool moved = true;
    while (moved) {
      moved = false;
      for (size_t lane = 0; lane < lanes_.size(); ++lane) {
        while (add_next(lane)) moved = true;
      }
    }
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      if (next_[lane] < lanes_[lane]->program().body.size()) {
        refuse("the program cannot be one graph: the " + lanes_[lane]->name() +
               " lane waits for what a later round records; use form 'events'");
      }
    }
    return std::move(graph_);
  }

 private:
  using Nodes = std::vector<CUgraphNode>;

  // false: at the end, or at a wait whose record was not added yet.
  bool add_next(size_t lane) {
    const std::vector<Op>& body = lanes_[lane]->program().body;
    if (next_[lane] == body.size()) return false;
    const Op& op = body[next_[lane]];
    if (op.kind == OpKind::kRecord) {
      records_[op.event].push_back(last_[lane]);
    } else if (op.kind == OpKind::kWait) {
      if (!add_wait(lane, op.event)) return false;
    } else {
      const DriverApi& api = lanes_[lane]->context()->driver().api();
      CUgraphNode node = nullptr;
      lanes_[lane]->context()->driver().check(
          api.cuGraphAddChildGraphNode(&node, graph_.get(), last_[lane].data(), last_[lane].size(),
                                       lanes_[lane]->body_step(next_[lane])->graph),
          "cuGraphAddChildGraphNode", std::string("for step ") + op_name(op.kind) + " of a round's graph");
      last_[lane] = {node};
    }
    ++next_[lane];
    return true;
  }

  // The lane's j-th wait of a round is for the (j + shift)-th record of that round, or of one before.
  bool add_wait(size_t lane, int event) {
    const int64_t per_round = count({lanes_[lane]}, true, OpKind::kWait, event);
    if (per_round != count(lanes_, true, OpKind::kRecord, event)) {
      refuse("the program cannot be one graph: a round waits for an event " + std::to_string(per_round) +
             " times, and records it otherwise; use form 'events'");
    }
    const int64_t shift =
        count({lanes_[lane]}, false, OpKind::kWait, event) - count(lanes_, false, OpKind::kRecord, event);
    const int64_t index = waits_[{lane, event}] + shift;
    if (index >= static_cast<int64_t>(records_[event].size())) return false;
    if (index >= 0) {
      for (const CUgraphNode node : records_[event][index]) {
        if (std::find(last_[lane].begin(), last_[lane].end(), node) == last_[lane].end()) {
          last_[lane].push_back(node);
        }
      }
    }
    ++waits_[{lane, event}];
    return true;
  }

  const std::vector<CudaLane*>& lanes_;
  CudaGraph graph_;
  std::vector<size_t> next_;                         // [lanes] op of the body
  std::vector<Nodes> last_;                          // [lanes] what the lane's next node comes after
  std::map<int, std::vector<Nodes>> records_;        // by event, what each record comes after
  std::map<std::pair<size_t, int>, int64_t> waits_;  // by lane and event
};

}  // namespace

bool RoundGraphs::can_hold(const std::vector<CudaLane*>& lanes) {
  for (const CudaLane* lane : lanes) {
    if (lane->program().empty()) continue;
    if (lane->context()->ordinal() != lanes.front()->context()->ordinal()) return false;
    for (const Op& op : lane->program().body) {
      const bool fetches = op.kind == OpKind::kFetchWindow || op.kind == OpKind::kFetchVerdict;
      const bool is_ordered = op.kind == OpKind::kRecord || op.kind == OpKind::kWait;
      if (fetches || (is_ordered && lane->has_host_peer())) return false;
    }
  }
  return true;
}

CUgraphExec RoundGraphs::find(const std::vector<CudaLane*>& lanes) {
  Key key;
  for (const CudaLane* lane : lanes) {
    for (const auto* ops : {&lane->program().prologue, &lane->program().body}) {
      for (size_t i = 0; i < ops->size(); ++i) {
        const Op& op = (*ops)[i];
        const bool ordered = op.kind == OpKind::kRecord || op.kind == OpKind::kWait;
        uint64_t detail = ordered ? static_cast<uint64_t>(op.event) : 0;
        if (!ordered && ops == &lane->program().body) detail = lane->body_step(i)->serial;
        key.emplace_back(static_cast<int>(op.kind), detail);
      }
      key.emplace_back(-1, 0);
    }
  }
  const auto found = execs_.find(key);
  if (found != execs_.end()) return found->second.get();
  if (execs_.size() >= kMaxGraphs) execs_.clear();
  const CudaGraph graph = Builder(lanes).build();
  CudaGraphExec exec(lanes.front()->context(), graph);
  return execs_.emplace(std::move(key), std::move(exec)).first->second.get();
}

}  // namespace pearl
