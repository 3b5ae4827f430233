// One graph for a round of all lanes: the body of the program, its steps as child graphs, its records and
// waits as edges. Launched on the target's stream, each round waits for the one before.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "cuda/driver/handles.h"
#include "cuda/lane/cuda_lane.h"

namespace pearl {

class RoundGraphs {
 public:
  // Whether a round of these lanes can be one graph: none of it is ordered with a lane on the host.
  static bool can_hold(const std::vector<CudaLane*>& lanes);

  // The graph of a run's rounds; made where it is asked for first. Throws Failure(kRequest) for a body whose
  // waits the edges of one round cannot express, CudaError for what the driver refuses.
  CUgraphExec find(const std::vector<CudaLane*>& lanes);

 private:
  // What a graph is made of: (op, event or step), lane after lane.
  using Key = std::vector<std::pair<int, uint64_t>>;
  static Key key_of(const std::vector<CudaLane*>& lanes);

  std::map<Key, CudaGraphExec> execs_;
};

}  // namespace pearl
