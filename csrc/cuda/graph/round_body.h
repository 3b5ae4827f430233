// The body of a program as the nodes of one graph: its steps as child graphs, its fetches as copies, its
// records and waits as edges, whatever stream or device each lane has. Adds them lane by lane, as far as
// their waits allow.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "cuda/lane/cuda_lane.h"

namespace pearl {

class RoundBody {
 public:
  // graph: not ours; of a context of the lanes.
  RoundBody(const std::vector<CudaLane*>& lanes, CUgraph graph)
      : lanes_(lanes), graph_(graph), next_(lanes.size(), 0), last_(lanes.size()) {}

  // Once. Throws Failure(kRequest) for a body whose waits the edges of one round cannot express, CudaError
  // for what the driver refuses.
  void build();

 private:
  using Nodes = std::vector<CUgraphNode>;

  // false: at the end, or at a wait whose record was not added yet.
  bool add_next(size_t lane);
  // What a fetch copies, from the other lane's memory.
  void add_copies(size_t lane, OpKind kind);
  // The lane's j-th wait of a round is for the (j + shift)-th record of that round, or of one before.
  bool add_wait(size_t lane, int event);

  const std::vector<CudaLane*>& lanes_;
  const CUgraph graph_;
  std::vector<size_t> next_;                         // [lanes] op of the body
  std::vector<Nodes> last_;                          // [lanes] what the lane's next node comes after
  std::map<int, std::vector<Nodes>> records_;        // by event, what each record comes after
  std::map<std::pair<size_t, int>, int64_t> waits_;  // by lane and event
};

}  // namespace pearl
