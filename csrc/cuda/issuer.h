// The one host thread that queues work ahead on the streams of a coordinator's CUDA lanes, as CpuDevice is
// the thread of CPU lanes. Lanes take turns; it reads verdicts from the pinned ring, late, and ends the run.
// Between requests it sleeps. Knows rounds and verdicts; not what a step does. Never needs Python.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "coordinator/event.h"
#include "coordinator/run.h"
#include "cuda/boarding.h"
#include "cuda/cuda_lane.h"
#include "cuda/driver.h"
#include "cuda/loop.h"
#include "cuda/loop_graph.h"
#include "cuda/round_graph.h"

namespace pearl {

// How the ops of a round are put in order on the device: one launch for each, with events between the
// streams; one launch for all; or one for all rounds, until somebody joins or leaves. The same bits. What
// cannot be launched so is launched as the form before does it.
enum class Form { kEvents, kGraph, kWhile };

struct IssuerOptions {
  Form form = Form::kEvents;
  // Rounds queued past the last verdict read; at most half of the verdict ring, all of which a loop may take.
  int64_t rounds_ahead = 2;
  bool timed = false;  // whether ops are timed for trace()
};

class CudaIssuer {
 public:
  // spin: how long it polls the verdict ring before it sleeps between looks. Throws Failure(kResource) if its
  // thread cannot be had.
  CudaIssuer(std::shared_ptr<Driver> driver, std::chrono::microseconds spin);
  ~CudaIssuer();
  CudaIssuer(const CudaIssuer&) = delete;
  CudaIssuer& operator=(const CudaIssuer&) = delete;

  // Of the next run. Throws Failure(kRequest) while one is in flight, Failure(kResource) for a form that the
  // driver is too old for.
  void set_options(const IssuerOptions& options);
  IssuerOptions options() const;
  // Throws Failure(kRequest) if rounds_ahead is more than the ring of these arrays takes.
  void check_ring(const DeviceArrays& arrays) const;

  // lanes: [target] or [target, draft], with their programs. Returns at once; the run ends by itself, or by
  // run.halt(). Throws Failure(kRequest) if another coordinator's run is in flight.
  void start(std::vector<CudaLane*> lanes, State* state, Run* run);
  // Returns when nothing of the lane's run is in flight.
  void join(const CudaLane* lane);
  bool is_flying(const CudaLane* lane) const;

  // What the last run that flew cost its thread for each verdict read: launching, and reading verdicts; not
  // the looks that found nothing. 0 before any.
  double host_ns_per_round() const;

  Signal* bell() { return &bell_; }
  uint64_t next_serial() { return serial_.fetch_add(1, std::memory_order_relaxed); }
  const std::shared_ptr<Driver>& driver() const { return driver_; }

 private:
  struct Work {
    std::vector<CudaLane*> lanes;
    State* state;
    Run* run;
    IssuerOptions options;
  };
  void serve();
  void perform(const Work& work);  // a whole run, with the streams idle at its end
  void stand_aside() const;
  void fly(const Work& work);
  void loop(const Work& work, Flight* flight, Clock::duration* busy);
  bool issue(const Work& work, Flight* flight, Boarding* boarding);
  bool issue_round(const Work& work, Flight* flight, Boarding* boarding);
  bool issue_loop(const Work& work, Flight* flight);
  bool loop_ends(const Work& work, Flight* flight, Boarding* boarding);
  void count_loop(CudaLane* target, Flight* flight);
  bool ends_round(const Work& work, Flight* flight, bool* moved);
  void rest(const Work& work, Flight* flight, uint32_t seen, Clock::time_point idle_since, bool looks);
  // Whether the streams are idle. Throws CudaError for what went wrong on one, Failure if a verdict is lost.
  bool look_for_faults(const Work& work, Flight* flight);
  void land(const Work& work);

  const std::shared_ptr<Driver> driver_;
  const std::chrono::microseconds spin_;
  Signal bell_;
  std::atomic<uint64_t> serial_{1};
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  IssuerOptions options_;         // guarded by mutex_
  std::optional<Work> work_;      // guarded by mutex_
  double host_ns_per_round_ = 0;  // guarded by mutex_
  bool quit_ = false;             // guarded by mutex_
  // The thread's.
  RoundGraphs round_graphs_;
  LoopGraphs loop_graphs_;
  Loop loop_;
  // Of the run, once its prologue was queued.
  bool is_one_stream_ = false;        // rounds are launched on the target's; else by events
  CUgraphExec round_exec_ = nullptr;  // nullptr: none was needed yet
  CUgraphExec loop_exec_ = nullptr;   // nullptr: rounds are launched one by one
  int64_t round_ = 0;                 // that was begun last, or that a loop may have begun; 0 is the prologue
  std::jthread thread_;
};

}  // namespace pearl
