// What the CUDA lanes of one run share: how far rounds may be queued ahead of the verdicts that were read,
// which events were issued, and what becomes of a verdict. Slots count rounds of their own, from the first
// that they run in. One thread's, the issuer's. Makes no call of the driver.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/run.h"
#include "coordinator/state.h"
#include "cuda/driver_api.h"
#include "cuda/logprob_ring.h"
#include "cuda/verdict_ring.h"

namespace pearl {

class InFlight {
 public:
  // host_lanes: whether a lane on the host reads verdicts, in `state`, and waits for the target's events.
  // recorded: [2] the events that the target's lane records in its prologue and in its body.
  InFlight(State* state, Run* run, VerdictRing ring, LogprobRing logprobs, int64_t rounds_ahead,
           bool host_lanes, int num_events, std::vector<std::vector<int>> recorded);

  // use_yield: called where the draft on the host waits for a verdict that was read, so that the state may be
  // changed. Not in the prologue, where it may still read prompts.
  void on_yield(std::function<void()> use_yield) { during_yield_ = std::move(use_yield); }
  // Whether the state is ours: a draft on the host has done its part of the next round to be read, which is
  // queued, and waits for its verdict.
  bool draft_yields() const { return !host_lanes_ || num_issued_ > num_read_; }

  // Whether work of that round may be queued: it is at most rounds_ahead rounds past the last verdict read,
  // and its results will find room.
  bool may_begin(int64_t round) const;
  // Whether all results that are owed find room, those of one more round, and so many besides.
  bool has_room(int more) const;

  // A verify was queued, of all slots that run.
  void verdict_issued() { ++num_issued_; }
  bool awaits_verdict() const;

  // Publishes what slots have committed, each slot's rounds in order -> whether anything had come. A slot
  // whose logits could not be used ends with an error.
  bool read_verdicts();
  int64_t num_read() const { return num_read_; }  // rounds whose verdicts were all read

  // As of the last verdict read: whether a slot is somebody's, whether any is, and whether any is in the
  // rounds that follow.
  bool runs(int slot) const { return slots_[slot].runs; }
  bool leaves(int slot) const { return slots_[slot].leaves; }
  bool is_empty() const;
  bool anyone_stays() const;

  // The slot is nobody's, and what the ring still says of it is forgotten.
  void clear(int slot) const {
    ring_.clear(slot);
    logprobs_.clear(slot);
  }
  // Its first verdict was queued by itself, behind the rounds so far: it runs in those that follow.
  void join(int slot);
  // It runs in the rounds that were queued, and in none that follow: "abort" ends it behind them.
  void leave(int slot);
  // A request whose prompt is not fed yet is given up.
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
  // Who has a slot.
  struct SlotProgress {
    bool runs = false;      // as of the last verdict read
    bool leaves = false;    // and is in no round from `until` on
    int64_t until = 0;      // a round of the run
    int64_t offset = 0;     // its round r is the run's r + offset
    int64_t num_read = 0;   // its rounds whose verdict was read
    int64_t committed = 0;  // as of the last of them
  };
  // Rounds of a progress that were queued.
  int64_t num_issued(const SlotProgress& progress) const {
    return (progress.leaves ? progress.until : num_issued_) - progress.offset;
  }
  bool is_there(int64_t round, int slot) const;  // its verdict, and its log-probabilities if it asks
  void read_slot(int slot);
  void end_slot(int slot);
  void vacate(int slot);  // it is nobody's, and its KV blocks are free
  void count_rounds();
  void apply(int slot, const VerdictEntry& entry, int64_t round);
  std::string bad_logits(int slot, const VerdictEntry& entry, int64_t round) const;

  State* const state_;
  Run* const run_;
  const VerdictRing ring_;
  const LogprobRing logprobs_;
  const int64_t rounds_ahead_;
  const bool host_lanes_;
  const std::vector<std::vector<int>> recorded_by_target_;
  std::vector<Recorded> events_;     // [num_events]
  std::vector<SlotProgress> slots_;  // [B]
  std::vector<int> ended_;           // slots whose end lanes on the host have still to be told
  std::function<void()> during_yield_;
  int64_t num_issued_ = 0;  // verifies queued, first included
  int64_t num_read_ = 0;    // rounds whose verdicts were read: the next is num_read_
  RoundResult result_;
};

}  // namespace pearl
