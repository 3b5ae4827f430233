// The rounds of one run that are in flight: queued on the streams of its CUDA lanes, and not yet read.
// Decides how far ahead rounds may be queued, keeps the state of each slot's request and which events were
// recorded, and publishes verdicts. Used by one thread, the issuer's. Makes no call of the driver.
//
// Two clocks count the rounds of a run: queued_rounds, whose verdicts were queued, and read_rounds, whose
// verdicts the host has read for every slot. The prologue is round 0. Each slot counts rounds of its own,
// from its request's first verdict; `offset` is the difference. An example with rounds_ahead = 2:
//
//   round of the run   0      1      2    |  3      4    |  5
//                         read            |  in flight   |  not queued yet
//                                         |              queued_rounds = 5
//                                         read_rounds = 3
//   slot 0             0      1      2       3      4         running, offset 0
//   slot 1                P      P0  1       2      3         prefilling (P: a pass), then running, offset 1
//   slot 2             0      1      2       3                leaving, end = 4; offset 0
//   slot 3                                       P            prefilling
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/run.h"
#include "coordinator/state.h"
#include "cuda/driver/driver_api.h"
#include "cuda/memory/logprob_ring.h"
#include "cuda/memory/verdict_ring.h"

namespace pearl {

// The state of the request that has a slot. Requests without a slot wait in the run's Admission.
enum class RequestState {
  kNone,        // the slot is free
  kWaiting,     // the slot and its KV blocks are reserved; nothing was copied to a device
  kPrefilling,  // its rows are copied; a pass of its prompt goes in front of each round
  kRunning,     // it is in every round that is queued
  kLeaving,     // cancelled: it is in the rounds queued so far, and in no later one
};

class InFlight {
 public:
  // host_lanes: whether a lane on the host reads verdicts, in `state`, and waits for the target's events.
  // draft_lag: rows of the draft at the end of the final tokens that a window may write yet, behind the
  // prompt; 0: no more than make_known knows of. recorded: [2] the events that the target's lane records in
  // its prologue and in its body.
  InFlight(State* state, Run* run, VerdictRing ring, LogprobRing logprobs, int64_t rounds_ahead,
           bool host_lanes, int64_t draft_lag, int num_events, std::vector<std::vector<int>> recorded);

  // A draft on the host yields the state while it waits for a verdict. use_yield is called once for each
  // round that was read, before that draft goes on; not for the prologue, where the draft may still read
  // prompts.
  void on_yield(std::function<void()> use_yield) { during_yield_ = std::move(use_yield); }
  // Whether this thread may use the state now. A draft on the host yields it once its part of the next round
  // to be read is done, and that round is queued. Always true without one.
  bool draft_yields() const { return !host_lanes_ || queued_rounds_ > read_rounds_; }

  // Whether that round may be queued: it is at most rounds_ahead past the last round read, and the host's
  // ring has room for its results.
  bool may_begin(int64_t round) const;
  // Whether the host's ring has room for all results of the rounds in flight, of one more round, and for
  // `more` results besides.
  bool has_room(int more) const;

  // The verdict of a round was queued, of all slots that run.
  void count_queued_round() { ++queued_rounds_; }
  // Whether the verdict of a round in flight can be read without a further call from a lane on the host.
  bool awaits_verdict() const;

  // Reads the verdicts that have come and publishes them, each slot's in order -> whether any had come. A
  // request whose logits cannot be used ends with an error.
  bool read_verdicts();
  int64_t read_rounds() const { return read_rounds_; }

  // As of the last verdict read.
  RequestState request_state(int slot) const { return slots_[slot].request; }
  // Whether verdicts of the slot were queued, or will be.
  bool runs(int slot) const { return slots_[slot].runs(); }
  bool any_runs() const;
  // Whether a request is in the rounds that follow.
  bool any_running() const;

  // Takes a free slot for a request that waits; entries of earlier requests in the rings are cleared.
  void reserve(int slot);
  // Its rows and its first pass are queued.
  void begin_prefill(int slot) { slots_[slot].request = RequestState::kPrefilling; }
  // Its first verdict was queued, behind the rounds queued so far. It runs in all that follow.
  void join(int slot);
  // A running request is cancelled. A result "abort" follows the last round that it is in.
  void leave(int slot);
  // A request that waits or prefills is cancelled: "abort" at once.
  void abort(int slot);

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
  struct SlotProgress {
    RequestState request = RequestState::kNone;
    int64_t offset = 0;       // its round r is the run's r + offset
    int64_t end = 0;          // leaving: the first round of the run that it is not in
    int64_t read_rounds = 0;  // its rounds whose verdict was read
    int64_t committed = 0;    // tokens, as of the last of them
    bool runs() const { return request == RequestState::kRunning || request == RequestState::kLeaving; }
  };
  // Rounds of the slot's own that were queued.
  int64_t queued_rounds(const SlotProgress& slot) const {
    return (slot.request == RequestState::kLeaving ? slot.end : queued_rounds_) - slot.offset;
  }
  // Whether the verdict has come, and its log-probabilities if the request asks for them.
  bool has_come(int64_t round, int slot) const;
  void read_slot(int slot);
  void end_slot(int slot);
  void vacate(int slot);  // the slot is free, and so are its KV blocks
  void count_read_rounds();
  void apply(int slot, const VerdictEntry& entry, int64_t round);
  void keep_prompt(int slot);
  void keep(int slot, const VerdictEntry& entry);
  std::string bad_logits(int slot, const VerdictEntry& entry, int64_t round) const;

  State* const state_;
  Run* const run_;
  const VerdictRing ring_;
  const LogprobRing logprobs_;
  const int64_t rounds_ahead_;
  const bool host_lanes_;
  const int64_t draft_lag_;
  const std::vector<std::vector<int>> recorded_by_target_;
  std::vector<Recorded> events_;     // [num_events]
  std::vector<SlotProgress> slots_;  // [B]
  std::vector<int> aborted_;         // slots that ended with "abort", which `state` does not show yet
  std::function<void()> during_yield_;
  int64_t queued_rounds_ = 0;
  int64_t read_rounds_ = 0;
  RoundResult result_;
};

}  // namespace pearl
