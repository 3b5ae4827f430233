// One graph for all rounds of a run: a WHILE node around the body of the program, which goes on by what two
// kernels of ours find on the device (csrc/cuda/loop_kernels.h). Knows graphs; not how far a run may get.
#pragma once

#include <map>
#include <vector>

#include "cuda/cuda_lane.h"
#include "cuda/handles.h"
#include "cuda/round_graph.h"

namespace pearl {

class LoopGraphs {
 public:
  // Whether the rounds of these lanes can be one graph: "all kernels must belong to the same CUDA context",
  // and of nodes kernels, copies, memsets, child graphs and empty ones alone are allowed in the body (cuda.h,
  // CUDA_CONDITIONAL_NODE_PARAMS). So a round that is one graph, of one device, with no fetch from another.
  static bool can_hold(const std::vector<CudaLane*>& lanes);

  // The graph of a run's rounds; made where it is asked for first. Throws Failure(kRequest) for a body whose
  // waits the edges of one round cannot express, CudaError for what the driver refuses.
  CUgraphExec find(const std::vector<CudaLane*>& lanes);

 private:
  struct Made {
    CudaGraph graph;  // kept: the driver owns the body by its node
    CudaGraphExec exec;
  };
  const CudaModule& kernels(const std::shared_ptr<Context>& context);
  Made make(const std::vector<CudaLane*>& lanes);

  std::map<int, CudaModule> modules_;  // by device; they go last
  std::map<RoundKey, Made> made_;
};

}  // namespace pearl
