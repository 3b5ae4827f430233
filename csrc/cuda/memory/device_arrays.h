// The arrays of a running batch in a device's memory, by the names of pearl_rt/state.py, and what is copied
// into them: a run's requests from the host's State, a window or a verdict from another memory. Knows
// addresses and layouts; not streams, steps or order: copies are lists, in order, for one stream.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/state.h"
#include "cuda/memory/array_table.h"
#include "cuda/memory/logprob_ring.h"
#include "cuda/memory/staging.h"

namespace pearl {

class DeviceArrays {
 public:
  // staging: pinned host memory of at least staging_bytes(sizes). owner: whatever keeps all of it alive.
  // Throws Failure(kRequest) for an address that is missing or unknown, and for too little staging.
  DeviceArrays(const std::map<std::string, CUdeviceptr>& addresses, const ArraySizes& sizes,
               CUdeviceptr staging, size_t staging_bytes, std::shared_ptr<void> owner);

  // Throws Failure(kRequest) for sizes that no arrays can have.
  // host_logits: a draft on the host keeps logits, for judge "rejection" at temperature > 0.
  static size_t staging_bytes(const ArraySizes& sizes, bool host_logits);

  // Throws Failure(kRequest) if a state of other sizes is to be mirrored here.
  void check_sizes(const State& state, const std::string& lane) const;
  // Throws Failure(kRequest) for requests that do not fit: too many stop ids, or biased ids.
  void check_requests(const State& state, const std::string& lane) const;
  void check_request(const Request& request, const std::string& lane) const;

  // Takes the run's requests into staging, marks the ring as empty, and says what to copy. Only while nothing
  // of the run before is in flight. processed: with what changes logits.
  std::vector<Copy> upload(const State& state, bool processed);
  // Instead, where the other lane has uploaded into the same memory: this lane's staging is free again.
  void share_upload();

  // The rows that each launch of a prefill reads from `chunk`: one group of copies for each pass.
  struct Pass {
    int slot;
    bool last;  // of its slot
    std::vector<Copy> copies;
  };
  // Of each slot tokens [starts[b], ends[b]), if there are any. Once for each upload.
  std::vector<Pass> prefill(const std::vector<int64_t>& starts, const std::vector<int64_t>& ends);

  // The window of the run from another device's arrays, or from the host's state; with its logits if kept,
  // which on a device have thresholds if they are processed.
  std::vector<Copy> window_from(const DeviceArrays& draft, int gamma, bool keep_logits, bool processed) const;
  std::vector<Copy> window_from(State* state, bool keep_logits);
  // What the target committed.
  std::vector<Copy> verdict_from(const DeviceArrays& target) const;

  // The rows of slots [begin, end), all but finish_reason, through staging: row_bytes of it.
  void add_rows(const State& state, int begin, int end, bool processed, Staging* staging,
                std::vector<Copy>* copies) const;
  static size_t row_bytes(const ArraySizes& sizes, size_t num_slots);
  // What csrc/cuda/memory/join_copies.h has of staging; no upload uses it.
  Staging join_staging() const { return join_staging_; }

  const ArrayAddresses& at() const { return at_; }
  bool is_same_memory(const DeviceArrays& other) const { return at_.token_ids == other.at_.token_ids; }
  bool takes_host_logits() const { return staging_bytes_ >= staging_bytes(sizes_, true); }
  const ArraySizes& sizes() const { return sizes_; }
  int32_t* ring() const { return reinterpret_cast<int32_t*>(at_.ring); }
  LogprobRing logprob_ring() const {
    return {reinterpret_cast<int32_t*>(at_.logprob_ring), sizes_.ring_size, sizes_.num_slots,
            sizes_.gamma_max + 1, sizes_.max_logprobs};
  }
  // Throws Failure(kRequest) for more log-probabilities than there is room for: the target's lane has some.
  void check_logprobs(const State& state, const std::string& lane) const;
  void check_logprobs(int num_logprobs, const std::string& lane) const;

 private:
  void check_stops(size_t found, const std::string& lane) const;
  void check_processors(const Transform& transform, const std::string& lane) const;

  ArrayAddresses at_;
  const ArraySizes sizes_;
  const size_t staging_bytes_;
  Staging join_staging_;
  Staging staging_;  // of a run's upload
  const std::shared_ptr<void> owner_;
  // Set by upload, for the windows that a draft on the host makes.
  int32_t* host_lengths_ = nullptr;  // [B]
  int32_t* host_windows_ = nullptr;  // [B, gamma]
  float* host_logits_ = nullptr;     // [B, gamma, Vd]
};

}  // namespace pearl
