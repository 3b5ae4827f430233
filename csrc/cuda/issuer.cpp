#include "cuda/issuer.h"

#ifdef __linux__
#include <pthread.h>
#endif

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "coordinator/checks.h"

namespace pearl {

namespace {

constexpr std::chrono::microseconds kLook{50};     // between looks at the ring, after the spin
constexpr std::chrono::milliseconds kPatience{2};  // until the streams are asked what is wrong

// Runs what may throw; what it throws ends the run.
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

Flight make_flight(const std::vector<CudaLane*>& lanes, State* state, Run* run, int64_t rounds_ahead) {
  const CudaLane& target = *lanes.front();
  const ArraySizes& sizes = target.arrays().sizes();
  const VerdictRing ring(target.arrays().ring(), sizes.ring_size, sizes.num_slots, state->longest_gamma);
  const LaneProgram& program = target.program();
  return Flight(state, run, ring, target.arrays().told(), rounds_ahead, target.has_host_draft(),
                run->num_events(), {recorded_events(program.prologue), recorded_events(program.body)});
}

}  // namespace

CudaIssuer::CudaIssuer(std::shared_ptr<Driver> driver, std::chrono::microseconds spin)
    : driver_(std::move(driver)), spin_(spin), thread_([this] { serve(); }) {
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
  if (options.form == Form::kWhile) driver_->need_conditional_nodes("form 'while'", "pass form 'graph'");
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

bool CudaIssuer::is_flying(const CudaLane* lane) const {
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
    ended_.notify_all();  // under the lock: whoever joins may destroy the lanes at once
  }
}

void CudaIssuer::perform(const Work& work) {
  round_exec_ = loop_exec_ = nullptr;
  is_one_stream_ = false;
  round_ = 0;
  loop_ = Loop();
  const bool flown = guarded(work.run, [&] { fly(work); });
  land(work);
  if (!flown || !work.options.timed) return;
  guarded(work.run, [&] {
    for (CudaLane* lane : work.lanes) {
      lane->context()->make_current();
      lane->read_trace();
    }
  });
}

// Somebody else's capture in the global mode forbids this thread's looks at events and streams, unless it
// says that it has no part in it.
void CudaIssuer::stand_aside() const {
  int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  driver_->check(driver_->api().cuThreadExchangeStreamCaptureMode(&mode), "cuThreadExchangeStreamCaptureMode",
                 "before a run");
}

void CudaIssuer::fly(const Work& work) {
  stand_aside();
  Flight flight = make_flight(work.lanes, work.state, work.run, work.options.rounds_ahead);
  const bool several_devices =
      work.lanes.size() > 1 && work.lanes[0]->context()->ordinal() != work.lanes[1]->context()->ordinal();
  for (CudaLane* lane : work.lanes) lane->begin(flight, work.options.timed, several_devices);
  Clock::duration busy{0};
  loop(work, &flight, &busy);
  if (flight.num_read() == 0) return;
  const double spent = std::chrono::duration<double, std::nano>(busy).count();
  const std::lock_guard<std::mutex> lock(mutex_);
  host_ns_per_round_ = spent / static_cast<double>(flight.num_read());
}

void CudaIssuer::loop(const Work& work, Flight* flight, Clock::duration* busy) {
  Boarding boarding(work.lanes, flight);
  Clock::time_point moved_at = Clock::now();
  while (!flight->halted()) {
    const uint32_t seen = bell_.value();  // before the look for work
    const Clock::time_point begin = Clock::now();
    const bool has_read = flight->read_verdicts();
    if (flight->is_empty() && !boarding.is_busy() && !loop_.is_flying() &&
        work.run->admission.close_if_empty()) {
      work.run->halt();
    }
    if (flight->halted()) return;
    if (issue(work, flight, &boarding) || has_read) {
      moved_at = Clock::now();
      *busy += moved_at - begin;
    } else {
      rest(work, flight, seen, moved_at,
           flight->awaits_verdict() || boarding.awaits_copies() || loop_.is_flying());
    }
  }
}

bool CudaIssuer::issue(const Work& work, Flight* flight, Boarding* boarding) {
  bool moved = false;
  while (!flight->halted() && ends_round(work, flight, &moved)) {
    if (loop_.is_flying()) {
      if (!loop_ends(work, flight, boarding)) return moved;
      moved = true;
    }
    // Between two rounds. Who waits for room, or for a verdict, goes on as soon as it is there.
    if (flight->anyone_stays() && !flight->may_begin(round_ + 1)) return moved;
    const bool boarded = boarding->perform(is_one_stream_);
    moved = moved || boarded;
    const bool is_wanted = flight->anyone_stays() || boarding->needs_a_round();
    if (is_wanted && flight->may_begin(round_ + 1) && !boarding->awaits_room()) {
      if (!issue_round(work, flight, boarding)) return moved;
      moved = true;
    } else if (!boarded) {
      return moved;
    }
  }
  return moved;
}

// Queues what is left of the round that was begun -> whether it is whole.
bool CudaIssuer::ends_round(const Work& work, Flight* flight, bool* moved) {
  if (is_one_stream_) return true;
  for (bool again = true; again;) {
    again = false;
    for (CudaLane* lane : work.lanes) again = lane->issue(flight, round_) || again;
    *moved = *moved || again;
  }
  for (const CudaLane* lane : work.lanes) {
    if (!lane->is_past(round_)) return false;
  }
  if (work.options.form != Form::kEvents && RoundGraphs::can_hold(work.lanes)) {
    if (work.options.form == Form::kWhile && LoopGraphs::can_hold(work.lanes)) {
      loop_exec_ = loop_graphs_.find(work.lanes);
      loop_.begin(work.lanes[0]);
    } else {
      round_exec_ = round_graphs_.find(work.lanes);
    }
    is_one_stream_ = true;
    if (work.lanes.size() > 1) work.lanes[0]->wait_for(work.lanes[1]);
    *moved = true;
  }
  return true;
}

// Begins the next round -> whether there is one.
bool CudaIssuer::issue_round(const Work& work, Flight* flight, Boarding* boarding) {
  CudaLane& target = *work.lanes.front();
  if (round_ >= target.max_rounds() || target.program().body.empty()) return false;
  // Where a prompt is fed, a pass goes in front of each round.
  if (loop_exec_ != nullptr && !boarding->is_busy() && !boarding->has_work()) {
    return issue_loop(work, flight);
  }
  ++round_;
  if (!is_one_stream_) return true;
  if (round_exec_ == nullptr) round_exec_ = round_graphs_.find(work.lanes);
  target.launch_rounds(round_exec_, OpKind::kRound, round_);
  flight->verdict_issued();
  return true;
}

// Launches the rounds that follow -> whether there is room for one.
bool CudaIssuer::issue_loop(const Work& work, Flight* flight) {
  CudaLane& target = *work.lanes.front();
  const int64_t more = std::min(flight->room_for_rounds(), target.max_rounds() - round_);
  if (more <= 0) return false;
  loop_.launch(loop_exec_, round_, more);
  count_loop(&target, flight);
  return true;
}

// While a loop flies: gives it rounds as results find room, or ends it where somebody joins or leaves ->
// whether it has ended.
bool CudaIssuer::loop_ends(const Work& work, Flight* flight, Boarding* boarding) {
  CudaLane& target = *work.lanes.front();
  const bool has_ended = loop_.has_ended();
  if (!has_ended && boarding->has_work()) {
    loop_.stop();
    // Meanwhile, what comes next if somebody joins.
    if (round_exec_ == nullptr && work.state->num_slots > 1) round_exec_ = round_graphs_.find(work.lanes);
  } else if (!has_ended) {
    loop_.allow(std::min(flight->room_for_rounds(), target.max_rounds() - round_));
  }
  count_loop(&target, flight);
  if (has_ended) flight->read_verdicts();  // they are all there: what follows is for who still runs
  return has_ended;
}

void CudaIssuer::count_loop(CudaLane* target, Flight* flight) {
  flight->correct_issued(loop_.rounds() - round_);
  round_ = loop_.rounds();
  target->reach(round_);
}

// looks: there is something to come that nobody rings for.
void CudaIssuer::rest(const Work& work, Flight* flight, uint32_t seen, Clock::time_point idle_since,
                      bool looks) {
  const Clock::time_point now = Clock::now();
  if (!looks) {
    // A lane on the host, the reader of results or a stop will ring; only a fault on a stream cannot.
    const bool all_idle = look_for_faults(work, flight);
    bell_.wait_until(seen, all_idle ? Clock::time_point::max() : now + 5 * kPatience, spin_);
    return;
  }
  if (now - idle_since < spin_) {
    for (int i = 0; i < 64; ++i) cpu_pause();
    return;
  }
  if (now - idle_since > kPatience) look_for_faults(work, flight);
  bell_.wait_until(seen, now + kLook, std::chrono::microseconds(0));
}

bool CudaIssuer::look_for_faults(const Work& work, Flight* flight) {
  bool all_idle = true;
  for (CudaLane* lane : work.lanes) all_idle = lane->is_idle() && all_idle;
  if (!all_idle) return false;
  if (loop_.is_flying()) {
    if (loop_.has_record()) return true;
    throw Failure(FailureKind::kExecutor,
                  "the streams are idle, but the loop of rounds never said that it ended");
  }
  if (!flight->awaits_verdict() || flight->read_verdicts() || flight->halted()) return true;
  throw Failure(FailureKind::kExecutor, "the streams are idle, but the verdict of round " +
                                            std::to_string(flight->num_read()) +
                                            " never came: its step verify wrote none");
}

void CudaIssuer::land(const Work& work) {
  loop_.stop();
  for (CudaLane* lane : work.lanes) {
    // Twice: a call that failed by itself has waited for nothing.
    if (!guarded(work.run, [&] { lane->drain(); })) guarded(work.run, [&] { lane->drain(); });
  }
}

}  // namespace pearl
