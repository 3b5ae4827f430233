// What the CUDA lanes of one run share: how far rounds may be queued ahead of the verdicts that were read,
// which events were issued, and what becomes of a verdict. One thread's, the issuer's. Makes no call of the
// driver.
#pragma once

#include <string>
#include <vector>

#include "coordinator/run.h"
#include "coordinator/state.h"
#include "cuda/driver_api.h"
#include "cuda/verdict_ring.h"

namespace pearl {

class Flight {
 public:
  // host_lanes: whether a lane on the host reads verdicts, in `state`, and waits for the target's events.
  // recorded: [2] the events that the target's lane records in its prologue and in its body.
  Flight(State* state, Run* run, VerdictRing ring, int64_t rounds_ahead, bool host_lanes, int num_events,
         std::vector<std::vector<int>> recorded);

  // Whether work of that round may be queued: it is at most rounds_ahead rounds past the last verdict read,
  // and its results will find room.
  bool may_begin(int64_t round) const;

  // A verify was queued. -> rounds whose verdict is to come
  void verdict_issued() { ++num_issued_; }
  bool awaits_verdict() const { return num_issued_ > num_read_; }

  // Publishes what rounds have committed, in order, and ends the run when no slot is left -> whether anything
  // had come. A slot whose logits could not be used ends with an error.
  bool read_verdicts();
  int64_t num_read() const { return num_read_; }

  // An event of the program was recorded on a stream: waits from now on are for this one.
  void record(int event, CUevent on_device);
  // The event on a device that the k-th wait (k = 0, 1, ..) is for; nullptr if it was not recorded yet, or by
  // a lane on the host only.
  CUevent issued(int event, uint64_t k) const;
  bool recorded_by_host(int event, uint64_t k) const { return run_->recorded(event) > k; }

  Run* run() const { return run_; }
  State* state() const { return state_; }
  bool halted() const { return run_->halted(); }

 private:
  struct Recorded {
    uint64_t count = 0;
    CUevent last = nullptr;
  };
  bool has_verdict(int64_t round) const;
  void read_slot(int64_t round, int slot);
  void apply(int slot, const VerdictEntry& entry, int64_t round);
  std::string bad_logits(int slot, const VerdictEntry& entry, int64_t round) const;

  State* const state_;
  Run* const run_;
  const VerdictRing ring_;
  const int64_t rounds_ahead_;
  const bool host_lanes_;
  const std::vector<std::vector<int>> recorded_by_target_;
  std::vector<Recorded> events_;     // [num_events]
  std::vector<uint8_t> is_running_;  // [B] as of the last verdict read
  std::vector<int64_t> committed_;   // [B] likewise
  int64_t num_issued_ = 0;           // verifies queued, first included
  int64_t num_read_ = 0;             // rounds whose verdict was read: the next is num_read_
  RoundResult result_;
};

}  // namespace pearl
