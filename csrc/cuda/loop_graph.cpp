#include "cuda/loop_graph.h"

#include <array>
#include <utility>

#include "cuda/loop_kernels.h"
#include "cuda/round_body.h"

namespace pearl {

namespace {

constexpr size_t kMaxGraphs = 32;  // kept; a window and a judge of a program each
constexpr const char* kPlace = "for the graph of all rounds";

// The nodes around a round's body.
class LoopNodes {
 public:
  LoopNodes(const CudaLane& target, const CudaModule& kernels, CUgraph graph)
      : target_(target), peek_(kernels.function(kLoopPeek)), turn_(kernels.function(kLoopTurn)) {
    // 0 at every launch: the first turn says whether there is a round at all.
    check(api().cuGraphConditionalHandleCreate(&handle_, graph, target.context()->get(), 0,
                                               CU_GRAPH_COND_ASSIGN_DEFAULT),
          "cuGraphConditionalHandleCreate");
  }

  CUgraphNode add_peek(CUgraph graph) const {
    CUdeviceptr allowed = host_word(LoopHostWords::kUntil);
    CUdeviceptr words = target_.arrays().at().loop;
    std::array<void*, 2> parameters = {&allowed, &words};
    return add_kernel(graph, {}, peek_, 1, parameters.data());
  }

  CUgraphNode add_turn(CUgraph graph, const std::vector<CUgraphNode>& after, uint32_t is_round) const {
    CUgraphConditionalHandle handle = handle_;
    CUdeviceptr words = target_.arrays().at().loop;
    CUdeviceptr told = host_word(LoopHostWords::kRan);
    CUdeviceptr finish_reason = target_.arrays().at().finish_reason;
    auto num_slots = static_cast<uint32_t>(target_.arrays().sizes().num_slots);
    std::array<void*, 6> parameters = {&handle, &words, &told, &finish_reason, &num_slots, &is_round};
    return add_kernel(graph, after, turn_, kLoopTurnThreads, parameters.data());
  }

  // -> its body, which the driver owns.
  CUgraph add_while(CUgraph graph, CUgraphNode after) const {
    CUgraphNodeParams_st parameters{};
    parameters.type = CU_GRAPH_NODE_TYPE_CONDITIONAL;
    parameters.conditional = {handle_, CU_GRAPH_COND_TYPE_WHILE, 1, nullptr, target_.context()->get()};
    CUgraphNode node = nullptr;
    check(api().cuGraphAddNode(&node, graph, &after, 1, &parameters), "cuGraphAddNode");
    return parameters.conditional.phGraph_out[0];
  }

 private:
  CUgraphNode add_kernel(CUgraph graph, const std::vector<CUgraphNode>& after, CUfunction function,
                         unsigned num_threads, void** values) const {
    CUDA_KERNEL_NODE_PARAMS_v2_st parameters{};
    parameters.func = function;
    parameters.gridDimX = parameters.gridDimY = parameters.gridDimZ = 1;
    parameters.blockDimX = num_threads;
    parameters.blockDimY = parameters.blockDimZ = 1;
    parameters.kernelParams = values;  // copied by the call
    CUgraphNode node = nullptr;
    check(api().cuGraphAddKernelNode(&node, graph, after.data(), after.size(), &parameters),
          "cuGraphAddKernelNode");
    return node;
  }

  CUdeviceptr host_word(size_t index) const {
    return target_.arrays().at().loop_host + index * sizeof(int32_t);
  }
  const DriverApi& api() const { return target_.context()->driver().api(); }
  void check(CUresult code, const char* call) const { target_.context()->driver().check(code, call, kPlace); }

  const CudaLane& target_;
  const CUfunction peek_, turn_;
  CUgraphConditionalHandle handle_ = 0;
};

}  // namespace

bool LoopGraphs::can_hold(const std::vector<CudaLane*>& lanes) {
  for (const CudaLane* lane : lanes) {
    if (lane->program().empty()) continue;
    if (lane->context()->ordinal() != lanes.front()->context()->ordinal()) return false;
    for (const Op& op : lane->program().body) {
      if (is_fetch(op.kind)) return false;
    }
  }
  return RoundGraphs::can_hold(lanes);
}

CUgraphExec LoopGraphs::find(const std::vector<CudaLane*>& lanes) {
  RoundKey key = round_key(lanes);
  const auto found = made_.find(key);
  if (found != made_.end()) return found->second.exec.get();
  if (made_.size() >= kMaxGraphs) made_.clear();
  return made_.emplace(std::move(key), make(lanes)).first->second.exec.get();
}

const CudaModule& LoopGraphs::kernels(const std::shared_ptr<Context>& context) {
  const auto found = modules_.find(context->ordinal());
  if (found != modules_.end()) return found->second;
  return modules_.emplace(context->ordinal(), CudaModule(context, kLoopPtx)).first->second;
}

LoopGraphs::Made LoopGraphs::make(const std::vector<CudaLane*>& lanes) {
  const std::shared_ptr<Context>& context = lanes.front()->context();
  CudaGraph graph(context);
  const LoopNodes nodes(*lanes.front(), kernels(context), graph.get());
  const CUgraphNode first = nodes.add_turn(graph.get(), {nodes.add_peek(graph.get())}, 0);
  const CUgraph body = nodes.add_while(graph.get(), first);
  std::vector<CUgraphNode> ends = RoundBody(lanes, body).build();
  ends.push_back(nodes.add_peek(body));
  nodes.add_turn(body, ends, 1);
  CudaGraphExec exec(context, graph);
  return {std::move(graph), std::move(exec)};
}

}  // namespace pearl
