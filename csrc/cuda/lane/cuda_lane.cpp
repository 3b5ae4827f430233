#include "cuda/lane/cuda_lane.h"

#include <algorithm>
#include <utility>

#include "core/checks.h"

namespace pearl {

namespace {

// The name of the step that an op launches; nullptr if it launches none, or several.
const char* step_name(OpKind kind) {
  const bool is_draft_or_score =
      kind == OpKind::kDraft || kind == OpKind::kScore || kind == OpKind::kScoreWindow;
  return is_draft_or_score || is_verdict(kind) ? name_of(kind).name : nullptr;
}

}  // namespace

CudaLane::CudaLane(std::string name, std::shared_ptr<Launcher> launcher, std::shared_ptr<CudaStream> stream,
                   std::shared_ptr<DeviceArrays> arrays, bool reads_target)
    : name_(std::move(name)),
      launcher_(std::move(launcher)),
      own_stream_(std::move(stream)),
      context_(own_stream_->context()),
      stream_(own_stream_->get()),
      arrays_(std::move(arrays)),
      reads_target_(reads_target),
      device_trace_(context_, stream_) {}

void CudaLane::add_step(const StepKey& key, Step step) {
  const std::lock_guard<std::mutex> lock(steps_mutex_);
  if (launcher_->is_running(this))
    refuse("a run is in flight: add steps to the " + name_ + " lane before it");
  step.serial = launcher_->next_serial();
  steps_.add(key, std::move(step));
}

void CudaLane::attach(const std::vector<Lane*>& lanes, size_t index, const State& state) {
  arrays_->check_sizes(state, name_);
  index_ = index;
  peer_ = nullptr;
  has_host_peer_ = has_host_cache_ = false;
  is_last_ = true;
  if (lanes.size() < 2) return;
  peer_ = dynamic_cast<CudaLane*>(lanes[1 - index]);
  has_host_peer_ = peer_ == nullptr;
  const int vocab_size = arrays_->sizes().draft_vocab_size;
  if (has_host_peer_) {
    if (index != 0) {
      refuse("the target's lane is on the host and the draft's on a GPU; put the target on the GPU, or both");
    }
    has_host_cache_ = lanes[1]->block_size() > 0;
    const int sampled = lanes[1]->drafts_rows() ? std::min(state.vocab_size, state.draft_vocab_size) : 0;
    if (vocab_size != sampled) {
      refuse("the arrays of the " + name_ + " lane hold draft logits of " + std::to_string(vocab_size) +
             " ids; the draft on the host samples from " + std::to_string(sampled));
    }
    return;
  }
  if (vocab_size != state.draft_vocab_size) {
    refuse("the arrays of the " + name_ + " lane hold draft logits of " + std::to_string(vocab_size) +
           " ids; the coordinator expects " + std::to_string(state.draft_vocab_size));
  }
  if (peer_->launcher_ != launcher_) refuse("the lanes of one coordinator need one issuer; there are two");
  is_last_ = index == 1;
}

void CudaLane::check(const LaneProgram& program, const State& state) const {
  arrays_->check_requests(state, name_);
  if (is_target()) arrays_->check_logprobs(state, name_);
  launcher_->check_ring(*arrays_);
  check_order(program);
  resolve(program.prologue, state);
  resolve(program.body, state);
}

void CudaLane::check_order(const LaneProgram& program) const {
  for (const auto* ops : {&program.prologue, &program.body}) {
    bool has_verdict = false;
    for (const Op& op : *ops) {
      has_verdict = has_verdict || is_verdict(op.kind);
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

const Step& CudaLane::find(const std::string& op, StepKey key, int slot) const {
  key.op = op;
  key.slot = slot;
  const std::lock_guard<std::mutex> lock(steps_mutex_);
  return steps_.find(std::move(key), name_);
}

std::vector<CudaLane::Resolved> CudaLane::resolve(const std::vector<Op>& ops, const State& state) const {
  const StepKey key = run_key(state);
  std::vector<Resolved> resolved;
  for (const Op& op : ops) {
    const char* const name = step_name(op.kind);
    resolved.push_back({op, name == nullptr ? nullptr : &find(name, key)});
    if (op.kind == OpKind::kPrefill || op.kind == OpKind::kPrefillContext) find("prefill chunk", key);
    for (int slot = 0; op.kind == OpKind::kPrefill && slot < state.num_slots; ++slot) {
      if (state.running(slot)) find("prefill logits", key, slot);
    }
    if (op.kind == OpKind::kFetchWindow && has_host_peer_ && key.keep_logits > 0 &&
        !arrays_->takes_host_logits()) {
      refuse("staging of the " + name_ +
             " lane has no room for the draft's logits, which judge 'rejection' " +
             "needs at temperature > 0: make it DeviceArrays.staging_bytes(..., host_logits=True)");
    }
  }
  return resolved;
}

Admission::Terms CudaLane::terms(const LaneProgram& program, const State& state) const {
  StepKey key = run_key(state);
  Admission::Terms terms;
  const OpKind makes_windows = has_host_peer_ ? OpKind::kFetchWindow : OpKind::kDraft;
  for (const Op& op : program.body) {
    if (op.kind != makes_windows) continue;
    terms.longest_gamma = key.gamma;
    terms.samples = key.keep_logits > 0 || state.judge == JudgeKind::kCoupled;
  }
  if (!is_target()) return terms;
  terms.processors = key.processed > 0;
  terms.logprobs = key.logprobs > 0;
  const auto has = [&](const char* op, int slot) {
    key.op = op;
    key.slot = slot;
    const std::lock_guard<std::mutex> lock(steps_mutex_);
    return steps_.has(key);
  };
  terms.is_open = has("prefill chunk", -1) && has("join", -1);
  for (int slot = 0; terms.is_open && slot < state.num_slots; ++slot) {
    terms.is_open = has("prefill logits", slot);
  }
  return terms;
}

void CudaLane::submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) {
  program_ = program;
  max_rounds_ = max_rounds;
  prologue_ = resolve(program.prologue, *state);
  body_ = resolve(program.body, *state);
  key_ = run_key(*state);
  const bool joins = is_target() && terms(program, *state).is_open;
  join_ = joins ? &find("join", key_) : nullptr;
  prefill_chunk_ = nullptr;
  prefill_logits_.assign(state->num_slots, nullptr);
  for (const Op& op : program.prologue) {
    const bool feeds = op.kind == OpKind::kPrefill || op.kind == OpKind::kPrefillContext;
    if (feeds) prefill_chunk_ = &find("prefill chunk", key_);
    for (int slot = 0; op.kind == OpKind::kPrefill && slot < state->num_slots; ++slot) {
      if (state->running(slot) || joins) prefill_logits_[slot] = &find("prefill logits", key_, slot);
    }
  }
  round_ = 0;
  next_ = 0;
  waits_.clear();
  trace_.reset(0);
  if (!is_last_) return;
  std::vector<CudaLane*> lanes = {this};
  if (peer_ != nullptr) lanes.insert(lanes.begin(), peer_);
  launcher_->start(std::move(lanes), state, run);
}

void CudaLane::join() { launcher_->join(this); }

void CudaLane::begin(const InFlight& in_flight, bool timed, bool several_devices) {
  several_devices_ = several_devices;
  context_->make_current();
  at_ = OpKind::kPrefill;
  is_idle();  // nothing is put on a stream whose context was lost before
  device_trace_.start(timed);
  if (peer_ != nullptr && !is_target() && arrays_->is_same_memory(*peer_->arrays_)) {
    arrays_->share_upload();
    wait_for(peer_);
  } else {
    copy(arrays_->upload(*in_flight.state(), key_.processed > 0));
  }
}

const CudaLane::Resolved* CudaLane::next_op(int64_t last_round) {
  for (;;) {
    const std::vector<Resolved>& ops = round_ == 0 ? prologue_ : body_;
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

bool CudaLane::issue(InFlight* in_flight, int64_t last_round) {
  bool moved = false;
  while (!in_flight->halted()) {
    const Resolved* next = next_op(last_round);
    if (next == nullptr) break;
    if (!moved && several_devices_) context_->make_current();
    if (!perform(*next, in_flight)) break;
    ++next_;
    moved = true;
  }
  return moved;
}

bool CudaLane::perform(const Resolved& next, InFlight* in_flight) {
  at_ = next.op.kind;
  if (next.op.kind == OpKind::kWait) return wait(next.op.event, in_flight);
  if (next.op.kind == OpKind::kRecord) {
    const CUevent event = own_event(1 + next.op.event);
    check(context_->driver().api().cuEventRecord(event, stream_), "cuEventRecord");
    in_flight->record(next.op.event, event);
  } else {
    device_trace_.begin(next.op.kind, static_cast<int>(round_));
    compute(next, in_flight);
    device_trace_.end();
  }
  return true;
}

bool CudaLane::wait(int event, InFlight* in_flight) {
  if (waits_.size() <= static_cast<size_t>(event)) waits_.resize(event + 1, 0);
  const CUevent issued = in_flight->issued(event, waits_[event]);
  if (issued == nullptr && !in_flight->recorded_by_host(event, waits_[event])) return false;
  device_trace_.begin(OpKind::kWait, static_cast<int>(round_));
  if (issued != nullptr) {
    check(context_->driver().api().cuStreamWaitEvent(stream_, issued, 0), "cuStreamWaitEvent");
  }
  device_trace_.end();
  ++waits_[event];
  return true;
}

void CudaLane::compute(const Resolved& next, InFlight* in_flight) {
  switch (next.op.kind) {
    case OpKind::kPrefill:
      return prefill(true, in_flight);
    case OpKind::kPrefillContext:
      return prefill(false, in_flight);
    case OpKind::kFetchWindow:
    case OpKind::kFetchVerdict:
      if (peer_ == nullptr) return copy(arrays_->window_from(in_flight->state(), key_.keep_logits > 0));
      return copy(fetched(next.op.kind));
    default:
      launch(*next.step);
      if (is_verdict(next.op.kind)) in_flight->count_queued_round();
  }
}

void CudaLane::prefill(bool with_last, InFlight* in_flight) {
  const State& state = *in_flight->state();
  std::vector<int64_t> starts, ends = state.prompt_len;
  for (int64_t& end : ends) end = std::max<int64_t>(0, end - (with_last ? 0 : 1));
  for (int b = 0; b < state.num_slots; ++b) starts.push_back(state.found_tokens(b));
  for (const DeviceArrays::Pass& pass : arrays_->prefill(starts, ends)) {
    if (in_flight->halted()) return;
    copy(pass.copies);
    launch(*prefill_chunk_);
    if (with_last && pass.last) launch(*prefill_logits_[pass.slot]);
  }
}

bool CudaLane::has_host_draft() const {
  return has_host_peer_ && std::any_of(program_.body.begin(), program_.body.end(),
                                       [](const Op& op) { return op.kind == OpKind::kFetchWindow; });
}

std::vector<Copy> CudaLane::fetched(OpKind kind) const {
  if (kind == OpKind::kFetchVerdict) return arrays_->verdict_from(*peer_->arrays_);
  return arrays_->window_from(*peer_->arrays_, key_.gamma, key_.keep_logits > 0, key_.processed > 0);
}

uint64_t CudaLane::fetched_key() const {
  return 4 * static_cast<uint64_t>(key_.gamma) + 2 * (key_.keep_logits > 0) + (key_.processed > 0);
}

void CudaLane::copy(const std::vector<Copy>& copies) {
  for (const Copy& each : copies) {
    if (each.num_bytes == 0) continue;
    check(context_->driver().api().cuMemcpyAsync(each.to, each.from, each.num_bytes, stream_),
          "cuMemcpyAsync");
  }
}

void CudaLane::launch(const Step& step) {
  if (step.function) return step.function();
  launch(step.exec);
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

void CudaLane::launch_round(CUgraphExec exec, int64_t round) {
  round_ = round;
  next_ = body_.size();
  at_ = OpKind::kRound;
  if (several_devices_) context_->make_current();
  device_trace_.begin(at_, static_cast<int>(round));
  launch(exec);
  device_trace_.end();
}

void CudaLane::queue(const std::vector<Copy>& copies) {
  if (several_devices_) context_->make_current();
  at_ = OpKind::kPrefill;
  copy(copies);
}

void CudaLane::feed(const std::vector<Copy>& range) {
  queue(range);
  device_trace_.begin(at_, static_cast<int>(round_));
  launch(*prefill_chunk_);
  device_trace_.end();
}

void CudaLane::judge(int slot, const std::vector<Copy>& before, const std::vector<Copy>& after) {
  queue(before);
  launch(*prefill_logits_[slot]);
  at_ = OpKind::kFirst;
  launch(*join_);
  copy(after);
}

void CudaLane::mark(int block) {
  if (several_devices_) context_->make_current();
  while (marks_.size() <= static_cast<size_t>(block)) marks_.emplace_back(context_, CU_EVENT_DISABLE_TIMING);
  check(context_->driver().api().cuEventRecord(marks_[block].get(), stream_), "cuEventRecord");
}

bool CudaLane::has_passed(int block) const {
  if (marks_.size() <= static_cast<size_t>(block)) return true;
  if (several_devices_) context_->make_current();
  const CUresult code = context_->driver().api().cuEventQuery(marks_[block].get());
  if (code == CUDA_ERROR_NOT_READY) return false;
  context_->driver().check(code, "cuEventQuery", stream_place());
  return true;
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

// A fault on a stream is reported late: any step up to the last one queued may have caused it.
std::string CudaLane::stream_place() const {
  return "on the stream of the " + name_ + " lane, in round " + std::to_string(round_) + " or before";
}

}  // namespace pearl
