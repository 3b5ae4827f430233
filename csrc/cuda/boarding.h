// How requests get into a flight and out of it, between two of its rounds: a waiting one takes a slot that is
// nobody's, its prompt is fed a pass a round in front of the others' ops, and its first row is judged by
// itself; one that was cancelled leaves. Queues copies and launches, and waits for nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/cuda_lane.h"
#include "cuda/flight.h"
#include "cuda/join_copies.h"

namespace pearl {

class Boarding {
 public:
  // lanes: [target] or [target, draft]; those without a program have no part in it.
  Boarding(const std::vector<CudaLane*>& lanes, Flight* flight);

  // Between two rounds, both of which are queued whole or not at all -> whether anything has changed.
  // in_one_stream: rounds are launched on the target's stream, the draft's steps with them.
  bool perform(bool in_one_stream);

  // Whether a prompt is being fed.
  bool is_feeding() const { return slot_ >= 0; }
  // Whether somebody waits until earlier copies have run, which nobody will tell.
  bool awaits_copies() const { return awaits_copies_; }

 private:
  bool take_cancelled();  // -> whether a slot that ran is nobody's now
  bool admit();           // -> whether somebody got a slot
  bool feed();            // -> whether there was room
  void judge();
  void mark();    // what was queued so far has the block of staging
  void settle();  // before the target's rows change: a draft with a memory of its own may still fetch them
  bool has_one_memory() const;

  Flight* const flight_;
  CudaLane* const target_;
  CudaLane* draft_ = nullptr;        // none in a program without one
  std::vector<JoinCopies> copies_;   // of the target, and of the draft
  std::vector<uint64_t> cancelled_;  // there was no room to say so
  int slot_ = -1;                    // whose prompt is fed
  int block_ = 0;                    // of staging, which it has
  int64_t fed_ = 0;                  // tokens of the prompt
  bool awaits_copies_ = false;
  bool is_settled_ = false;   // between these two rounds
  bool has_aborted_ = false;  // likewise: a prompt that was fed is given up
};

}  // namespace pearl
