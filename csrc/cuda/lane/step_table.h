// The steps of a lane, each by what it was captured for. Knows names and handles; not how a step
// works, nor when it is launched.
#pragma once

#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "coordinator/state.h"
#include "core/program.h"
#include "cuda/driver/driver_api.h"
#include "sampling/judge.h"

namespace pearl {

// What a step was captured for; fields that its op does not depend on are ignored.
//   prefill chunk -          score, score window  gamma       draft  gamma, judge, keep_logits, processed
//   prefill logits gamma, slot   first, verify, join  gamma, judge, processed, logprobs
struct StepKey {
  std::string op;
  int gamma = -1;
  std::string judge;
  int keep_logits = -1;
  int slot = -1;
  int processed = -1;  // whether filters and penalties are applied; for requests without any the same bits
  int logprobs = -1;   // whether log-probabilities are logprobs, of requests that ask
  auto operator<=>(const StepKey&) const = default;
  std::string text() const;  // "draft for gamma 4, judge rejection, logits kept"
};

// What the steps of a run are captured for, whatever their op and slot: by its requests.
StepKey run_key(const State& state);

// What puts the work of a step on the lane's stream: torch's graph, kept whole, and its executable, both the
// caller's; or a function that launches it, called by the issuer's thread.
struct Step {
  std::function<void()> function;  // none: the graph
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  std::shared_ptr<void> owner;  // whatever keeps both alive
  uint64_t serial = 0;          // no other step of this issuer's lanes has it; handles may come again
};

class StepTable {
 public:
  // Throws Failure(kRequest) for an unknown op, a field that its op needs, or a handle that is 0.
  void add(StepKey key, Step step);

  // Throws Failure(kRequest), which lists what there is. lane: its name, for the message. A step "first" that
  // was not captured is "verify".
  const Step& find(StepKey key, const std::string& lane) const;
  bool has(const StepKey& key) const;

 private:
  std::map<StepKey, Step> steps_;
};

}  // namespace pearl
