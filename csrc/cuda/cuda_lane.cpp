#include "cuda/cuda_lane.h"

#include <algorithm>
#include <utility>

#include "cuda/issuer.h"

namespace pearl {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw Failure(FailureKind::kRequest, what); }

// How a step is called that an op launches; nullptr where it is none, or several.
const char* step_name(OpKind kind) {
  switch (kind) {
    case OpKind::kFirst:
      return "first";
    case OpKind::kDraft:
      return "draft";
    case OpKind::kScore:
      return "score";
    case OpKind::kScoreWindow:
      return "score window";
    case OpKind::kVerify:
      return "verify";
    default:
      return nullptr;
  }
}

bool keeps_logits(const State& state) {
  if (state.judge != JudgeKind::kRejection) return false;
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (state.running(slot) && state.temperature[slot] > 0.0f) return true;
  }
  return false;
}

bool is_verdict(const Op& op) { return op.kind == OpKind::kFirst || op.kind == OpKind::kVerify; }

}  // namespace

CudaLane::CudaLane(std::string name, std::shared_ptr<CudaIssuer> issuer, int ordinal, CUstream stream,
                   std::shared_ptr<DeviceArrays> arrays)
    : name_(std::move(name)),
      issuer_(std::move(issuer)),
      context_(std::make_shared<Context>(issuer_->driver(), ordinal)),
      stream_(stream),
      arrays_(std::move(arrays)),
      device_trace_(context_, stream) {}

CudaLane::~CudaLane() { join(); }

void CudaLane::add_step(const StepKey& key, Step step) {
  const std::lock_guard<std::mutex> lock(steps_mutex_);
  if (issuer_->is_flying(this)) refuse("a run is in flight: add steps to the " + name_ + " lane before it");
  step.serial = issuer_->next_serial();
  steps_.add(key, std::move(step));
}

Signal* CudaLane::bell() { return issuer_->bell(); }

void CudaLane::attach(const std::vector<Lane*>& lanes, size_t index, const State& state) {
  arrays_->check_sizes(state, name_);
  index_ = index;
  peer_ = nullptr;
  has_host_peer_ = false;
  is_last_ = true;
  if (lanes.size() < 2) return;
  peer_ = dynamic_cast<CudaLane*>(lanes[1 - index]);
  has_host_peer_ = peer_ == nullptr;
  const int vocab_size = arrays_->sizes().draft_vocab_size;
  if (has_host_peer_) {
    if (index != 0) {
      refuse("the target's lane is on the host and the draft's on a GPU; put the target on the GPU, or both");
    }
    const int sampled = std::min(state.vocab_size, state.draft_vocab_size);
    if (vocab_size != sampled) {
      refuse("the arrays of the " + name_ + " lane hold draft logits of " + std::to_string(vocab_size) +
             " ids; the draft on the host samples from " + std::to_string(sampled));
    }
    return;
  }
  if (vocab_size != state.draft_vocab_size) {
    refuse("the arrays of the " + name_ + " lane hold draft logits of " + std::to_string(vocab_size) +
           " ids; the coordinator was told " + std::to_string(state.draft_vocab_size));
  }
  if (peer_->issuer_ != issuer_) refuse("the lanes of one coordinator need one issuer; there are two");
  is_last_ = index == 1;
}

void CudaLane::check(const LaneProgram& program, const State& state) const {
  arrays_->check_requests(state, name_);
  issuer_->check_ring(*arrays_);
  check_order(program);
  resolve(program.prologue, state);
  resolve(program.body, state);
}

void CudaLane::check_order(const LaneProgram& program) const {
  for (const auto* ops : {&program.prologue, &program.body}) {
    bool has_verdict = false;
    for (const Op& op : *ops) {
      has_verdict = has_verdict || is_verdict(op);
      if (op.kind == OpKind::kRecord && has_host_peer_ && !has_verdict) {
        refuse(
            "the host's lane learns of verdicts only: the target's lane can record an event for it behind "
            "first or verify, not before");
      }
      if (op.kind == OpKind::kFetchVerdict && (peer_ == nullptr || is_target())) {
        refuse("fetch verdict is for a draft's lane beside a target's on a GPU");
      }
      if (op.kind == OpKind::kFetchWindow && !is_target()) refuse("fetch window is for the target's lane");
    }
    if (is_target() && ops == &program.body && !ops->empty() && !has_verdict) {
      refuse("the body of the target's lane has no verify: its rounds could not be counted");
    }
  }
}

const Step& CudaLane::step(const Op& op, const State& state) const {
  const std::lock_guard<std::mutex> lock(steps_mutex_);
  const std::string judge = state.judge == JudgeKind::kCoupled ? "coupled" : "rejection";
  return steps_.find({step_name(op.kind), state.longest_gamma, judge, keeps_logits(state), -1}, name_);
}

std::vector<CudaLane::Resolved> CudaLane::resolve(const std::vector<Op>& ops, const State& state) const {
  std::vector<Resolved> resolved;
  for (const Op& op : ops) {
    resolved.push_back({op, step_name(op.kind) == nullptr ? nullptr : &step(op, state)});
    const bool feeds = op.kind == OpKind::kPrefill || op.kind == OpKind::kPrefillContext;
    const std::lock_guard<std::mutex> lock(steps_mutex_);
    if (feeds) steps_.find({"prefill chunk", -1, "", -1, -1}, name_);
    for (int slot = 0; op.kind == OpKind::kPrefill && slot < state.num_slots; ++slot) {
      if (state.running(slot)) steps_.find({"prefill logits", state.longest_gamma, "", -1, slot}, name_);
    }
    if (op.kind == OpKind::kFetchWindow && has_host_peer_ && keeps_logits(state) &&
        !arrays_->takes_host_logits()) {
      refuse("staging of the " + name_ +
             " lane has no room for the draft's logits, which judge 'rejection' " +
             "needs at temperature > 0: make it DeviceArrays.staging_bytes(..., host_logits=True)");
    }
  }
  return resolved;
}

void CudaLane::submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) {
  program_ = program;
  max_rounds_ = max_rounds;
  prologue_ = resolve(program.prologue, *state);
  body_ = resolve(program.body, *state);
  keep_logits_ = keeps_logits(*state);
  prefill_chunk_ = nullptr;
  prefill_logits_.assign(state->num_slots, nullptr);
  for (const Op& op : program.prologue) {
    const std::lock_guard<std::mutex> lock(steps_mutex_);
    const bool feeds = op.kind == OpKind::kPrefill || op.kind == OpKind::kPrefillContext;
    if (feeds) prefill_chunk_ = &steps_.find({"prefill chunk", -1, "", -1, -1}, name_);
    for (int slot = 0; op.kind == OpKind::kPrefill && slot < state->num_slots; ++slot) {
      if (!state->running(slot)) continue;
      prefill_logits_[slot] = &steps_.find({"prefill logits", state->longest_gamma, "", -1, slot}, name_);
    }
  }
  round_ = 0;
  next_ = 0;
  waits_.clear();
  trace_.reset(0);
  if (!is_last_) return;
  std::vector<CudaLane*> lanes = {this};
  if (peer_ != nullptr) lanes.insert(lanes.begin(), peer_);
  issuer_->start(std::move(lanes), state, run);
}

void CudaLane::join() { issuer_->join(this); }

void CudaLane::begin(const Flight& flight, bool timed, bool several_devices) {
  several_devices_ = several_devices;
  context_->make_current();
  at_ = OpKind::kPrefill;
  is_idle();  // nothing is put on a stream whose context was lost before
  device_trace_.start(timed);
  if (peer_ != nullptr && !is_target() && arrays_->is_same_memory(*peer_->arrays_)) {
    arrays_->share_upload();
    wait_for(peer_);
  } else {
    copy(arrays_->upload(*flight.state()));
  }
}

const CudaLane::Resolved* CudaLane::next_op(const Flight& flight, int64_t last_round) {
  for (;;) {
    const std::vector<Resolved>& ops = round_ == 0 ? prologue_ : body_;
    if (next_ == 0 && next_ < ops.size() && !flight.may_begin(round_)) return nullptr;
    if (next_ < ops.size()) return &ops[next_];
    if (round_ >= std::min(last_round, max_rounds_) || body_.empty()) return nullptr;
    ++round_;
    next_ = 0;
  }
}

bool CudaLane::is_past(int64_t round) const {
  if (round_ == 0 && next_ < prologue_.size()) return false;
  return body_.empty() || round_ > round || (round_ == round && (round == 0 || next_ == body_.size()));
}

bool CudaLane::issue(Flight* flight, int64_t last_round) {
  bool moved = false;
  while (!flight->halted()) {
    const Resolved* next = next_op(*flight, last_round);
    if (next == nullptr) break;
    if (!moved && several_devices_) context_->make_current();
    if (!perform(*next, flight)) break;
    ++next_;
    moved = true;
  }
  return moved;
}

bool CudaLane::perform(const Resolved& next, Flight* flight) {
  at_ = next.op.kind;
  if (next.op.kind == OpKind::kWait) return wait(next.op.event, flight);
  if (next.op.kind == OpKind::kRecord) {
    const CUevent event = own_event(1 + next.op.event);
    check(context_->driver().api().cuEventRecord(event, stream_), "cuEventRecord");
    flight->record(next.op.event, event);
  } else {
    device_trace_.begin(next.op.kind, static_cast<int>(round_));
    compute(next, flight);
    device_trace_.end();
  }
  return true;
}

bool CudaLane::wait(int event, Flight* flight) {
  if (waits_.size() <= static_cast<size_t>(event)) waits_.resize(event + 1, 0);
  const CUevent issued = flight->issued(event, waits_[event]);
  if (issued == nullptr && !flight->recorded_by_host(event, waits_[event])) return false;
  device_trace_.begin(OpKind::kWait, static_cast<int>(round_));
  if (issued != nullptr) {
    check(context_->driver().api().cuStreamWaitEvent(stream_, issued, 0), "cuStreamWaitEvent");
  }
  device_trace_.end();
  ++waits_[event];
  return true;
}

void CudaLane::compute(const Resolved& next, Flight* flight) {
  switch (next.op.kind) {
    case OpKind::kPrefill:
      return prefill(true, flight);
    case OpKind::kPrefillContext:
      return prefill(false, flight);
    case OpKind::kFetchWindow:
    case OpKind::kFetchVerdict:
      return fetch(next.op.kind, flight);
    default:
      launch(next.step->exec);
      if (is_verdict(next.op)) flight->verdict_issued();
  }
}

void CudaLane::prefill(bool with_last, Flight* flight) {
  std::vector<int64_t> lengths = flight->state()->prompt_len;
  for (int64_t& length : lengths) length = std::max<int64_t>(0, length - (with_last ? 0 : 1));
  for (const DeviceArrays::Pass& pass : arrays_->prefill(lengths)) {
    if (flight->halted()) return;
    copy(pass.copies);
    launch(prefill_chunk_->exec);
    if (with_last && pass.last) launch(prefill_logits_[pass.slot]->exec);
  }
}

void CudaLane::fetch(OpKind kind, Flight* flight) {
  const State& state = *flight->state();
  if (kind == OpKind::kFetchVerdict) {
    copy(arrays_->verdict_from(*peer_->arrays_));
  } else if (peer_ != nullptr) {
    copy(arrays_->window_from(*peer_->arrays_, state.longest_gamma, keep_logits_));
  } else {
    copy(arrays_->window_from(flight->state(), keep_logits_));
  }
}

void CudaLane::copy(const std::vector<Copy>& copies) {
  for (const Copy& each : copies) {
    if (each.num_bytes == 0) continue;
    check(context_->driver().api().cuMemcpyAsync(each.to, each.from, each.num_bytes, stream_),
          "cuMemcpyAsync");
  }
}

void CudaLane::launch(CUgraphExec exec) {
  check(context_->driver().api().cuGraphLaunch(exec, stream_), "cuGraphLaunch");
}

void CudaLane::wait_for(CudaLane* other) {
  if (other->several_devices_) other->context_->make_current();
  const CUevent event = other->own_event(0);
  check(context_->driver().api().cuEventRecord(event, other->stream_), "cuEventRecord");
  if (several_devices_) context_->make_current();
  check(context_->driver().api().cuStreamWaitEvent(stream_, event, 0), "cuStreamWaitEvent");
}

void CudaLane::launch_round(CUgraphExec exec, int64_t round, Flight* flight) {
  round_ = round;
  next_ = body_.size();
  at_ = OpKind::kRound;
  if (several_devices_) context_->make_current();
  device_trace_.begin(at_, static_cast<int>(round));
  launch(exec);
  device_trace_.end();
  flight->verdict_issued();
}

bool CudaLane::is_idle() const {
  if (several_devices_) context_->make_current();
  const CUresult code = context_->driver().api().cuStreamQuery(stream_);
  if (code == CUDA_ERROR_NOT_READY) return false;
  context_->driver().check(code, "cuStreamQuery", stream_place());
  return true;
}

void CudaLane::drain() const {
  context_->make_current();
  context_->driver().check(context_->driver().api().cuStreamSynchronize(stream_), "cuStreamSynchronize",
                           stream_place());
}

CUevent CudaLane::own_event(size_t index) {
  while (events_.size() <= index) events_.emplace_back(context_, CU_EVENT_DISABLE_TIMING);
  return events_[index].get();
}

void CudaLane::check(CUresult code, const char* call) const {
  if (code != CUDA_SUCCESS) context_->driver().check(code, call, place());
}

std::string CudaLane::place() const {
  if (at_ == OpKind::kRound) return "in round " + std::to_string(round_);
  return std::string("in step ") + op_name(at_) + " of the " + name_ + " lane, round " +
         std::to_string(round_);
}

// A fault on a stream is told late: of any step up to the last one queued.
std::string CudaLane::stream_place() const {
  return "on the stream of the " + name_ + " lane, in round " + std::to_string(round_) + " or before";
}

}  // namespace pearl
