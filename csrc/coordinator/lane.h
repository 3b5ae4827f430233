// The seam between the coordinator and a backend: a queue of ops on some device.
#pragma once

#include <string>

#include "coordinator/event.h"
#include "coordinator/program.h"
#include "coordinator/trace.h"

namespace pearl {

class Run;
struct State;

class Lane {
 public:
  virtual ~Lane() = default;

  virtual const std::string& name() const = 0;

  // What Run must raise for this lane to look at events and at halt again; lanes of one thread share it.
  virtual Signal* bell() = 0;

  // Returns at once. The lane runs the prologue, then the body until run.halted(), at most max_rounds times.
  // State and run outlive the request.
  virtual void submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) = 0;

  // Returns when the lane is idle, which it is within a round of run.halt().
  virtual void join() = 0;

  // Of the last request; only while the lane is idle.
  virtual const Trace& trace() const = 0;
};

}  // namespace pearl
