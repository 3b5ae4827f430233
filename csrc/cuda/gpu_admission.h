// How requests get into a flight and out of it, between two of its rounds: a waiting one takes a slot that is
// nobody's, its prompt is fed a pass a round in front of the others' ops, and its first row is judged by
// itself; one that was cancelled leaves. Queues copies and launches, and waits for nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/cuda_lane.h"
#include "cuda/in_flight.h"
#include "cuda/join_copies.h"

namespace pearl {

class GpuAdmission {
 public:
  // lanes: [target] or [target, draft]; those without a program have no part in it.
  GpuAdmission(const std::vector<CudaLane*>& lanes, InFlight* in_flight);

  // Between two rounds, both of which are queued whole or not at all -> whether anything has changed.
  // in_one_stream: rounds are launched on the target's stream, the draft's steps with them.
  bool perform(bool in_one_stream);

  // Whether somebody is on the way into the in_flight.
  bool is_busy() const { return slot_ >= 0 || chosen_ >= 0; }
  // Whether who waits needs further rounds, although nobody stays for them: a draft on the host is fed a
  // chunk of a prompt in each, and gives the state away at its end.
  bool needs_a_round() const {
    return target_->has_host_draft() && (is_busy() || in_flight_->run()->admission.has_news());
  }
  // Behind perform(): whether who boards, or is given up, lacks room for its results, which further rounds
  // would take. The rounds of a draft on the host cannot wait: it judges in one of them, and is one ahead.
  bool awaits_room() const;
  // Whether somebody waits until earlier copies have run, which nobody will tell.
  bool awaits_copies() const { return awaits_copies_; }

 private:
  bool take_cancelled();           // -> whether a slot that ran is nobody's now
  void use_yield();                // with a draft on the host: what becomes of the state between two rounds
  void choose();                   // who waits gets a slot, if one is free
  int free_slot() const;           // -1: none
  bool admit(bool in_one_stream);  // -> whether somebody's rows are on the way
  bool feed();                     // -> whether there was room
  bool is_last_pass() const;       // the next one, of the target's
  bool may_judge() const;
  void judge();
  void mark();    // what was queued so far has the block of staging
  void settle();  // before the target's rows change: a draft with a memory of its own may still fetch them
  bool has_one_memory() const;

  InFlight* const in_flight_;
  CudaLane* const target_;
  CudaLane* draft_ = nullptr;        // none in a program without one
  std::vector<JoinCopies> copies_;   // of the target, and of the draft
  std::vector<uint64_t> cancelled_;  // there was no room to say so
  int chosen_ = -1;                  // whose rows are to be copied
  int slot_ = -1;                    // whose prompt is fed
  int block_ = 0;                    // of staging, which it has
  int64_t fed_ = 0;                  // tokens of the prompt
  bool awaits_copies_ = false;
  bool is_settled_ = false;   // between these two rounds
  bool has_aborted_ = false;  // likewise: a prompt that was fed is given up
};

}  // namespace pearl
