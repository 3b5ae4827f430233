#include "cuda/graph/round_graph.h"

#include <utility>

#include "cuda/graph/round_body.h"

namespace pearl {

namespace {

constexpr size_t kMaxGraphs = 32;  // kept; a window and a judge of a program each

}  // namespace

bool RoundGraphs::can_hold(const std::vector<CudaLane*>& lanes) {
  for (const CudaLane* lane : lanes) {
    if (lane->program().empty()) continue;
    for (const Op& op : lane->program().body) {
      if (is_order(op.kind) && lane->has_host_peer()) return false;
    }
  }
  return true;
}

RoundGraphs::Key RoundGraphs::key_of(const std::vector<CudaLane*>& lanes) {
  Key key;
  for (const CudaLane* lane : lanes) {
    for (const auto* ops : {&lane->program().prologue, &lane->program().body}) {
      for (size_t i = 0; i < ops->size(); ++i) {
        const Op& op = (*ops)[i];
        uint64_t detail = is_order(op.kind) ? static_cast<uint64_t>(op.event) : 0;
        if (is_fetch(op.kind)) {
          detail = lane->fetched_key();
        } else if (!is_order(op.kind) && ops == &lane->program().body) {
          detail = lane->body_step(i)->serial;
        }
        key.emplace_back(static_cast<int>(op.kind), detail);
      }
      key.emplace_back(-1, 0);
    }
  }
  return key;
}

CUgraphExec RoundGraphs::find(const std::vector<CudaLane*>& lanes) {
  Key key = key_of(lanes);
  const auto found = execs_.find(key);
  if (found != execs_.end()) return found->second.get();
  if (execs_.size() >= kMaxGraphs) execs_.clear();
  const CudaGraph graph(lanes.front()->context());
  RoundBody(lanes, graph.get()).build();
  CudaGraphExec exec(lanes.front()->context(), graph);
  return execs_.emplace(std::move(key), std::move(exec)).first->second.get();
}

}  // namespace pearl
