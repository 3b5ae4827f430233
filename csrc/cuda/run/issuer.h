// The host thread that queues work ahead on the streams of a coordinator's CUDA lanes, as CpuDevice is the
// thread of CPU lanes. It queues the ops of all lanes, reads verdicts from the pinned ring, late, and ends
// the run. Between runs it sleeps. Knows rounds and verdicts; not what a step does. Never needs Python.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "coordinator/run.h"
#include "core/event.h"
#include "cuda/driver/driver.h"
#include "cuda/graph/round_graph.h"
#include "cuda/lane/cuda_lane.h"
#include "cuda/run/gpu_admission.h"

namespace pearl {

// How the ops of a round are put in order on the device: one launch for each, with events between the
// streams; or one launch for all. The same bits. A round that cannot be one graph is launched by events.
enum class Form { kEvents, kGraph };

struct IssuerOptions {
  Form form = Form::kEvents;
  // Rounds queued past the last verdict read; at most half of the verdict ring.
  int64_t rounds_ahead = 2;
  bool timed = false;           // whether ops are timed for trace()
  bool drafts_at_once = false;  // whether one pass of the draft has all rows of a window
};

class CudaIssuer : public Launcher {
 public:
  // spin: how long it polls the verdict ring without a pause, before it sleeps between polls. Throws
  // Failure(kResource) if its thread cannot be started.
  CudaIssuer(std::shared_ptr<Driver> driver, std::chrono::microseconds spin);
  ~CudaIssuer() override;
  CudaIssuer(const CudaIssuer&) = delete;
  CudaIssuer& operator=(const CudaIssuer&) = delete;

  // Of the next run. Throws Failure(kRequest) while one is in flight.
  void set_options(const IssuerOptions& options);
  IssuerOptions options() const;

  void check_ring(const DeviceArrays& arrays) const override;
  void start(std::vector<CudaLane*> lanes, State* state, Run* run) override;
  void join(const CudaLane* lane) override;
  bool is_running(const CudaLane* lane) const override;

  // Host time of the last run for each round read, in which the thread launched work and read verdicts;
  // without polls that found nothing. 0 before the first run.
  double host_ns_per_round() const;

  Signal* bell() override { return &bell_; }
  uint64_t next_serial() override { return serial_.fetch_add(1, std::memory_order_relaxed); }
  const std::shared_ptr<Driver>& driver() const override { return driver_; }

 private:
  struct Work {
    std::vector<CudaLane*> lanes;
    State* state;
    Run* run;
    IssuerOptions options;
  };
  void serve();
  void perform(const Work& work);  // a whole run, with the streams idle at its end
  void relax_capture_mode() const;
  void run(const Work& work);
  void queue_rounds(const Work& work, InFlight* in_flight, Clock::duration* busy);
  bool issue(const Work& work, InFlight* in_flight, GpuAdmission* admission);
  bool issue_round(const Work& work, InFlight* in_flight);
  bool ends_round(const Work& work, InFlight* in_flight, bool* moved);
  void rest(const Work& work, InFlight* in_flight, uint32_t seen, Clock::time_point idle_since, bool polls);
  // Whether the streams are idle. Throws CudaError for what went wrong on one, Failure if a verdict is lost:
  // if a second look after kDoubt finds the same. A driver may say once that a stream at work is idle.
  bool look_for_faults(const Work& work, InFlight* in_flight);
  void drain(const Work& work);

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
  // Of the run, once its prologue was queued.
  CUgraphExec round_exec_ = nullptr;  // a round as one graph, on the target's stream; nullptr: by events
  int64_t round_ = 0;                 // that was begun last; 0 is the prologue
  // Since when the streams are said to be idle while a verdict is awaited; none: they are not.
  std::optional<Clock::time_point> idle_since_;
  std::jthread thread_;
};

}  // namespace pearl
