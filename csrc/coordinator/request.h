// One sequence to generate, as a caller asks for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sampling/transform.h"

namespace pearl {

// What ends a window of a draft model before gamma: drafters/stop_rule.h.
enum class StopKind { kNone, kAuto, kConfidence, kAdaEdl, kMarginal, kThompson };
struct StopRule {
  StopKind kind = StopKind::kNone;
  double at = 0;  // a probability; the first threshold; the cost of a draft's step, in steps of the target;
                  // kThompson has none
};

struct Request {
  std::vector<int32_t> prompt_token_ids;
  int gamma = 0;
  float temperature = 0.0f;
  uint64_t seed = 0;
  int64_t max_tokens = 128;
  std::vector<int32_t> eos_token_ids;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  Transform transform;           // masked_ids are filled in where a slot is
  int num_logprobs = -1;         // likeliest tokens reported with each token; -1: nothing
  int num_prompt_logprobs = -1;  // as num_logprobs, of the prompt's tokens from the second on
  bool shares = true;            // text and KV blocks with later requests, and theirs with it
  bool adapts = false;           // its windows follow the run's table too, not its own gamma alone
  StopRule stop = {};

  // What min_tokens forbids: end of text, ignored or not, and stop ids; each once.
  std::vector<int32_t> forbidden_ids() const {
    std::vector<int32_t> ids = eos_token_ids;
    ids.insert(ids.end(), stop_token_ids.begin(), stop_token_ids.end());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  }
};

}  // namespace pearl
