#include "cuda/graph/round_body.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/checks.h"

namespace pearl {

namespace {

int64_t count(const std::vector<CudaLane*>& lanes, bool body, OpKind kind, int event) {
  int64_t total = 0;
  for (const CudaLane* lane : lanes) {
    for (const Op& op : body ? lane->program().body : lane->program().prologue) {
      total += op.kind == kind && op.event == event;
    }
  }
  return total;
}

std::string place(OpKind kind) { return std::string("for step ") + op_name(kind) + " of a round's graph"; }

}  // namespace

void RoundBody::build() {
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
}

bool RoundBody::add_next(size_t lane) {
  const std::vector<Op>& body = lanes_[lane]->program().body;
  if (next_[lane] == body.size()) return false;
  const Op& op = body[next_[lane]];
  if (op.kind == OpKind::kRecord) {
    records_[op.event].push_back(last_[lane]);
  } else if (op.kind == OpKind::kWait) {
    if (!add_wait(lane, op.event)) return false;
  } else if (is_fetch(op.kind)) {
    add_copies(lane, op.kind);
  } else {
    const Driver& driver = lanes_[lane]->context()->driver();
    CUgraphNode node = nullptr;
    driver.check(driver.api().cuGraphAddChildGraphNode(&node, graph_, last_[lane].data(), last_[lane].size(),
                                                       lanes_[lane]->body_step(next_[lane])->graph),
                 "cuGraphAddChildGraphNode", place(op.kind));
    last_[lane] = {node};
  }
  ++next_[lane];
  return true;
}

void RoundBody::add_copies(size_t lane, OpKind kind) {
  const Context& context = *lanes_[lane]->context();
  Nodes nodes;
  for (const Copy& copy : lanes_[lane]->fetched(kind)) {
    if (copy.num_bytes == 0) continue;
    CUDA_MEMCPY3D row{};
    row.srcMemoryType = row.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
    row.srcDevice = copy.from;
    row.dstDevice = copy.to;
    row.WidthInBytes = copy.num_bytes;
    row.Height = row.Depth = 1;
    CUgraphNode node = nullptr;
    context.driver().check(context.driver().api().cuGraphAddMemcpyNode(
                               &node, graph_, last_[lane].data(), last_[lane].size(), &row, context.get()),
                           "cuGraphAddMemcpyNode", place(kind));
    nodes.push_back(node);
  }
  if (!nodes.empty()) last_[lane] = std::move(nodes);  // side by side: no two write the same
}

bool RoundBody::add_wait(size_t lane, int event) {
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

}  // namespace pearl
