// Where the parameters of requests that change logits lie in a device's memory, and what is copied there, by
// the names of pearl_rt/device_shaping. Knows addresses and layouts; not what a kernel does with them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "coordinator/state.h"
#include "cuda/memory/staging.h"

namespace pearl {

// kept_thresholds [B, S]: of the rows of draft logits, as they were sampled; set by draft.
// clang-format off
#define PEARL_SHAPING(X)                                                                          \
  X(repetition_penalty) X(frequency_penalty) X(presence_penalty) X(top_p) X(min_p)                \
  X(top_k) X(min_tokens) X(masked_ids) X(bias_ids) X(bias) X(kept_thresholds)
// clang-format on

struct ShapingSizes {
  int num_slots = 1;   // B
  int num_masked = 0;  // ids that min_tokens forbids
  int num_biased = 0;  // ids of logit_bias; 0: there are no such arrays
};

class ShapingArrays {
 public:
  explicit ShapingArrays(const ShapingSizes& sizes) : sizes_(sizes) {}

  // Where each address goes.
  std::map<std::string, CUdeviceptr*> places();
  bool exist() const { return sizes_.num_biased > 0; }

  // Throws Failure(kRequest) for a request that does not fit. lane: its name, for the message.
  void check(const Request& request, const std::string& lane) const;
  void check(const Transform& transform, const std::string& lane) const;

  // The rows of slots [begin, end), through staging. Idle slots have no filters and penalties.
  void add_rows(const State& state, int begin, int end, Staging* staging, std::vector<Copy>* copies) const;
  static size_t staging_bytes(const ShapingSizes& sizes, size_t num_slots);

  CUdeviceptr kept_thresholds() const { return at_.kept_thresholds; }

 private:
  struct Addresses {
#define PEARL_MEMBER(name) CUdeviceptr name = 0;
    PEARL_SHAPING(PEARL_MEMBER)
#undef PEARL_MEMBER
  };
  Addresses at_;
  const ShapingSizes sizes_;
};

// Whether a request's logits are changed before they are sampled.
inline bool is_shaped(const Request& request) { return request.transform.any(request.temperature); }
inline bool is_shaped(const State& state, int slot) {
  return state.transform[slot].any(state.temperature[slot]);
}

}  // namespace pearl
