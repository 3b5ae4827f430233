// How requests enter and leave a run of CUDA lanes, between two rounds that are queued. A request that waits
// is given a free slot; a pass of its prompt goes in front of each round; its first verdict is queued by
// itself. A request that is cancelled leaves. Queues copies and launches, and never waits for a device.
// Admits one request at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/lane/cuda_lane.h"
#include "cuda/lane/in_flight.h"
#include "cuda/memory/join_copies.h"

namespace pearl {

class GpuAdmission {
 public:
  // lanes: [target] or [target, draft]; a lane without a program has no part in it.
  GpuAdmission(const std::vector<CudaLane*>& lanes, InFlight* in_flight);

  // Between two rounds, each of which is queued whole or not at all -> whether anything has changed.
  // in_one_stream: rounds are launched on the target's stream, the draft's steps with them.
  bool perform(bool in_one_stream);

  // Whether a request waits in a slot, or prefills.
  bool is_busy() const { return slot_ >= 0; }
  // Whether admission needs another round although no request runs: a draft on the host feeds a chunk of a
  // prompt in each round, and yields the state at its end.
  bool needs_a_round() const {
    return target_->has_host_draft() && (is_busy() || in_flight_->run()->admission.has_news());
  }
  // Behind perform(): whether the next round must not be queued, because its results would take the room that
  // a first verdict or an "abort" needs. With a draft on the host a first verdict does not hold rounds back:
  // that draft judges in one of them.
  bool awaits_room() const;
  // Whether a request waits until earlier copies out of its block of staging have run. No bell rings for
  // that.
  bool awaits_copies() const { return awaits_copies_; }

 private:
  bool take_cancelled();           // -> whether a request that ran leaves
  void use_yield();                // with a draft on the host: changes the state between two of its rounds
  void reserve_slot();             // for the request that has waited longest, if a slot and blocks are free
  int free_slot() const;           // -1: none
  bool admit(bool in_one_stream);  // -> whether a request has begun to prefill
  bool prefills() const;           // whether the request in slot_ does
  bool feed();                     // queues a pass of its prompt -> whether there was room for its results
  bool is_last_pass() const;       // of the target: the next one
  bool may_judge() const;
  void judge();
  void mark();    // block_ of staging is in use until all that is queued so far has run
  void settle();  // before the target's rows change: a draft with a memory of its own may still fetch them
  bool has_one_memory() const;

  InFlight* const in_flight_;
  CudaLane* const target_;
  CudaLane* draft_ = nullptr;        // none in a program without one
  std::vector<JoinCopies> copies_;   // of the target, and of the draft
  std::vector<uint64_t> cancelled_;  // requests whose "abort" has no room yet
  int slot_ = -1;                    // of the request that waits or prefills
  int block_ = 0;                    // of staging: its copies start there
  int64_t fed_ = 0;                  // tokens of its prompt that were queued
  bool awaits_copies_ = false;
  // Since the last round was queued:
  bool is_settled_ = false;
  bool has_aborted_ = false;  // a request that waited or prefilled was cancelled
};

}  // namespace pearl
