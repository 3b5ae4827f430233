#include "cuda/run/issuer.h"

#ifdef __linux__
#include <pthread.h>
#endif

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "core/checks.h"
#include "core/thread.h"

namespace pearl {

namespace {

constexpr std::chrono::microseconds kPoll{50};     // between polls of the ring, after the spin
constexpr std::chrono::milliseconds kPatience{2};  // until the streams are queried for faults
constexpr std::chrono::milliseconds kDoubt{10};    // between two answers "idle" that tell a lost verdict

// Runs a function; an exception from it ends the run.
template <typename Function>
bool guarded(Run* run, const Function& function) {
  try {
    function();
    return true;
  } catch (const Failure& failure) {
    run->fail(failure);
  } catch (const std::bad_alloc&) {
    run->fail(Failure(FailureKind::kResource, "out of memory (in the thread that launches work)"));
  } catch (const std::exception& error) {
    run->fail(
        Failure(FailureKind::kExecutor, std::string(error.what()) + " (in the thread that launches work)"));
  }
  return false;
}

std::vector<int> recorded_events(const std::vector<Op>& ops) {
  std::vector<int> events;
  for (const Op& op : ops) {
    if (op.kind == OpKind::kRecord) events.push_back(op.event);
  }
  return events;
}

InFlight make_in_flight(const std::vector<CudaLane*>& lanes, State* state, Run* run,
                        const IssuerOptions& options) {
  const CudaLane& target = *lanes.front();
  const ArraySizes& sizes = target.arrays().sizes();
  const VerdictRing ring(target.arrays().ring(), sizes.ring_size, sizes.num_slots, state->longest_gamma);
  const LaneProgram& program = target.program();
  const int64_t draft_lag = options.drafts_at_once ? state->longest_gamma + 1 : 0;
  return InFlight(state, run, ring, target.arrays().logprob_ring(), options.rounds_ahead,
                  target.has_host_draft(), draft_lag, run->num_events(),
                  {recorded_events(program.prologue), recorded_events(program.body)});
}

}  // namespace

CudaIssuer::CudaIssuer(std::shared_ptr<Driver> driver, std::chrono::microseconds spin)
    : driver_(std::move(driver)), spin_(spin), thread_(started_thread("the issuer", [this] { serve(); })) {
#ifdef __linux__
  pthread_setname_np(thread_.native_handle(), "pearl-issuer");
#endif
}

CudaIssuer::~CudaIssuer() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
  }
  bell_.raise();
  thread_.join();
}

void CudaIssuer::set_options(const IssuerOptions& options) {
  if (options.rounds_ahead < 1) {
    refuse("rounds_ahead is " + std::to_string(options.rounds_ahead) + "; it must be at least 1");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (work_) refuse("a run is in flight: set the issuer's options before it");
  options_ = options;
}

IssuerOptions CudaIssuer::options() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return options_;
}

double CudaIssuer::host_ns_per_round() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return host_ns_per_round_;
}

void CudaIssuer::check_ring(const DeviceArrays& arrays) const {
  const int64_t rounds_ahead = options().rounds_ahead;
  const int ring_size = arrays.sizes().ring_size;
  if (rounds_ahead > ring_size / 2) {
    refuse("rounds_ahead is " + std::to_string(rounds_ahead) + "; a verdict ring of " +
           std::to_string(ring_size) + " rounds takes 1 to " + std::to_string(ring_size / 2));
  }
}

void CudaIssuer::start(std::vector<CudaLane*> lanes, State* state, Run* run) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (work_) refuse("the issuer is at work for another coordinator; give each its own, or end that run");
    run->ring.watch(&bell_);
    work_.emplace(Work{std::move(lanes), state, run, options_});
  }
  bell_.raise();
}

bool CudaIssuer::is_running(const CudaLane* lane) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return work_ && std::find(work_->lanes.begin(), work_->lanes.end(), lane) != work_->lanes.end();
}

void CudaIssuer::join(const CudaLane* lane) {
  std::unique_lock<std::mutex> lock(mutex_);
  ended_.wait(lock, [&] {
    return !work_ || std::find(work_->lanes.begin(), work_->lanes.end(), lane) == work_->lanes.end();
  });
}

void CudaIssuer::serve() {
  for (;;) {
    const uint32_t seen = bell_.value();  // before the look for work: what comes later rings it
    std::optional<Work> work;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (quit_) return;
      work = work_;
    }
    if (!work) {
      bell_.wait(seen, spin_);
      continue;
    }
    perform(*work);
    const std::lock_guard<std::mutex> lock(mutex_);
    work_.reset();
    ended_.notify_all();  // under the lock: behind join() the caller may destroy the lanes at once
  }
}

void CudaIssuer::perform(const Work& work) {
  round_exec_ = nullptr;
  round_ = 0;
  idle_since_.reset();
  const bool has_run = guarded(work.run, [&] { run(work); });
  drain(work);
  if (!has_run || !work.options.timed) return;
  guarded(work.run, [&] {
    for (CudaLane* lane : work.lanes) {
      lane->context()->make_current();
      lane->read_trace();
    }
  });
}

// A capture in the global mode, by any other thread, forbids this thread to query events and streams, unless
// this thread's own mode is relaxed.
void CudaIssuer::relax_capture_mode() const {
  int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  driver_->check(driver_->api().cuThreadExchangeStreamCaptureMode(&mode), "cuThreadExchangeStreamCaptureMode",
                 "before a run");
}

void CudaIssuer::run(const Work& work) {
  relax_capture_mode();
  InFlight in_flight = make_in_flight(work.lanes, work.state, work.run, work.options);
  const bool several_devices =
      work.lanes.size() > 1 && work.lanes[0]->context()->ordinal() != work.lanes[1]->context()->ordinal();
  for (CudaLane* lane : work.lanes) lane->begin(in_flight, work.options.timed, several_devices);
  Clock::duration busy{0};
  queue_rounds(work, &in_flight, &busy);
  if (in_flight.read_rounds() == 0) return;
  const double spent = std::chrono::duration<double, std::nano>(busy).count();
  const std::lock_guard<std::mutex> lock(mutex_);
  host_ns_per_round_ = spent / static_cast<double>(in_flight.read_rounds());
}

void CudaIssuer::queue_rounds(const Work& work, InFlight* in_flight, Clock::duration* busy) {
  GpuAdmission admission(work.lanes, in_flight);
  Clock::time_point moved_at = Clock::now();
  while (!in_flight->halted()) {
    const uint32_t seen = bell_.value();  // before the look for work
    const Clock::time_point begin = Clock::now();
    const bool has_read = in_flight->read_verdicts();
    if (!in_flight->any_runs() && !admission.is_busy() && work.run->admission.close_if_empty()) {
      work.run->halt();
    }
    if (in_flight->halted()) return;
    if (issue(work, in_flight, &admission) || has_read) {
      moved_at = Clock::now();
      *busy += moved_at - begin;
      idle_since_.reset();
    } else {
      rest(work, in_flight, seen, moved_at, in_flight->awaits_verdict() || admission.awaits_copies());
    }
  }
}

bool CudaIssuer::issue(const Work& work, InFlight* in_flight, GpuAdmission* admission) {
  bool moved = false;
  while (!in_flight->halted() && ends_round(work, in_flight, &moved)) {
    // Between two rounds. If the next round may not begin, this returns until a verdict is read or results
    // have room.
    if (in_flight->any_running() && !in_flight->may_begin(round_ + 1)) return moved;
    const bool admitted = admission->perform(round_exec_ != nullptr);
    moved = moved || admitted;
    const bool is_wanted = in_flight->any_running() || admission->needs_a_round();
    if (is_wanted && in_flight->may_begin(round_ + 1) && !admission->awaits_room()) {
      if (!issue_round(work, in_flight)) return moved;
      moved = true;
    } else if (!admitted) {
      return moved;
    }
  }
  return moved;
}

// Queues the rest of the round that was begun -> whether all of it is queued.
bool CudaIssuer::ends_round(const Work& work, InFlight* in_flight, bool* moved) {
  if (round_exec_ != nullptr) return true;
  for (bool again = true; again;) {
    again = false;
    for (CudaLane* lane : work.lanes) again = lane->issue(in_flight, round_) || again;
    *moved = *moved || again;
  }
  for (const CudaLane* lane : work.lanes) {
    if (!lane->is_past(round_)) return false;
  }
  if (work.options.form == Form::kGraph && RoundGraphs::can_hold(work.lanes)) {
    round_exec_ = round_graphs_.find(work.lanes);
    if (work.lanes.size() > 1) work.lanes[0]->wait_for(work.lanes[1]);
    *moved = true;
  }
  return true;
}

// Begins the next round -> whether there is one.
bool CudaIssuer::issue_round(const Work& work, InFlight* in_flight) {
  CudaLane& target = *work.lanes.front();
  if (round_ >= target.max_rounds() || target.program().body.empty()) return false;
  ++round_;
  if (round_exec_ == nullptr) return true;
  target.launch_round(round_exec_, round_);
  in_flight->count_queued_round();
  return true;
}

// Sleeps until the bell rings. polls: a verdict or a copy is awaited, for which no bell rings.
void CudaIssuer::rest(const Work& work, InFlight* in_flight, uint32_t seen, Clock::time_point idle_since,
                      bool polls) {
  const Clock::time_point now = Clock::now();
  if (!polls) {
    // A lane on the host, the reader of results or a stop will ring. A fault on a stream does not.
    const bool all_idle = look_for_faults(work, in_flight);
    bell_.wait_until(seen, all_idle ? Clock::time_point::max() : now + 5 * kPatience, spin_);
    return;
  }
  if (now - idle_since < spin_) {
    for (int i = 0; i < 64; ++i) cpu_pause();
    return;
  }
  if (now - idle_since > kPatience) look_for_faults(work, in_flight);
  bell_.wait_until(seen, now + kPoll, std::chrono::microseconds(0));
}

bool CudaIssuer::look_for_faults(const Work& work, InFlight* in_flight) {
  bool all_idle = true;
  for (CudaLane* lane : work.lanes) all_idle = lane->is_idle() && all_idle;
  const bool lacks_verdict =
      all_idle && in_flight->awaits_verdict() && !in_flight->read_verdicts() && !in_flight->halted();
  if (!lacks_verdict) {
    idle_since_.reset();
    return all_idle;
  }
  const Clock::time_point now = Clock::now();
  idle_since_ = idle_since_.value_or(now);
  if (now - *idle_since_ < kDoubt) return true;
  throw Failure(FailureKind::kExecutor, "the streams are idle, but the verdict of round " +
                                            std::to_string(in_flight->read_rounds()) +
                                            " never came: its step verify wrote none");
}

void CudaIssuer::drain(const Work& work) {
  for (CudaLane* lane : work.lanes) {
    // Twice: a first call that failed has not waited for the stream.
    if (!guarded(work.run, [&] { lane->drain(); })) guarded(work.run, [&] { lane->drain(); });
  }
}

}  // namespace pearl
