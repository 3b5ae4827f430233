// A run's rounds as they repeat themselves on a device: how many may run, and how many have. The host gives
// rounds to it as results find room, takes them all back to end it, and learns late how far it came. One
// thread's, the issuer's.
#pragma once

#include <cstdint>

#include "cuda/cuda_lane.h"

namespace pearl {

class Loop {
 public:
  // For a run, with nothing of the run before in flight.
  void begin(CudaLane* target);

  // One launch behind the first `round` rounds of the run, of at most `more` of them. Only while none flies.
  void launch(CUgraphExec exec, int64_t round, int64_t more);
  // So many on top. Without effect once it was stopped.
  void allow(int64_t more);
  // It ends behind the round that it is in, or the next. Any time.
  void stop();

  bool is_flying() const { return is_flying_; }
  // Whether the device has said that the launch is over.
  bool has_record() const;
  // The same, and the launch flies no more.
  bool has_ended();
  // Of the run: those that may be queued while a launch flies, and exactly those that ran behind it.
  int64_t rounds() const { return is_flying_ ? allowed_ : before_ + ran_; }

 private:
  void store_allowed(int64_t rounds);

  CudaLane* target_ = nullptr;
  int32_t* host_ = nullptr;  // LoopHostWords
  int64_t before_ = 0;       // rounds of the run that no loop ran
  int64_t allowed_ = 0;      // rounds of the run
  int64_t ran_ = 0;          // in loops that ended
  int32_t num_launched_ = 0;
  bool is_flying_ = false;
  bool is_stopped_ = false;
};

}  // namespace pearl
