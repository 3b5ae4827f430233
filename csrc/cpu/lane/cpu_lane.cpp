#include "cpu/lane/cpu_lane.h"

#include <algorithm>
#include <new>

#include "core/checks.h"
#include "drafters/model_drafter.h"

namespace pearl {

namespace {

constexpr int64_t kTracedRounds = 1 << 15;

}  // namespace

CpuLane::CpuLane(std::string name, std::shared_ptr<CpuDevice> device, std::shared_ptr<Executor> executor,
                 std::shared_ptr<TapRows> taps)
    : name_(std::move(name)),
      device_(std::move(device)),
      executor_(executor),
      drafter_(std::make_shared<ModelDrafter>(std::move(executor))),
      taps_(std::move(taps)) {
  if (taps_ != nullptr && !taps_->claim()) {
    refuse("the drafter reads the taps of another lane; give each target a drafter of its own");
  }
}

CpuLane::CpuLane(std::string name, std::shared_ptr<CpuDevice> device, std::shared_ptr<Drafter> drafter)
    : name_(std::move(name)), device_(std::move(device)), drafter_(std::move(drafter)) {}

CpuLane::~CpuLane() {
  join();
  if (taps_ != nullptr) taps_->give_back();
}

void CpuLane::attach(const std::vector<Lane*>&, size_t index, const State& state) {
  if (index > 0) return drafter_->attach(name_, state);
  if (executor_ == nullptr) {
    refuse("the " + name_ + " lane only drafts; the first lane is the target's, which has an executor");
  }
  state.check_executor(name_, *executor_, state.vocab_size, state.capacity);
  if (taps_ != nullptr) taps_->attach(*executor_, state);
}

bool CpuLane::has(const std::vector<Op>& ops, OpKind kind) {
  return std::any_of(ops.begin(), ops.end(), [kind](const Op& op) { return op.kind == kind; });
}

void CpuLane::check(const LaneProgram& program, const State& state) const {
  const bool overlaps = has(program.body, OpKind::kScore) && has(program.body, OpKind::kWait);
  if (state.candidates > 1 && overlaps) {
    refuse("the " + name_ + " lane scores pending tokens beside a draft, and with candidates " +
           std::to_string(state.candidates) +
           " windows lie beside one another: take a program without overlap (sd), or candidates=1");
  }
  if (taps_ != nullptr && overlaps) {
    refuse("the draft reads what the " + name_ +
           " lane computed in the round before, and cannot draft beside it: take a program without overlap "
           "(sd)");
  }
  if (executor_ != nullptr) return;
  for (const auto* ops : {&program.prologue, &program.body}) {
    for (const Op& op : *ops) {
      if (op.kind == OpKind::kPrefill || op.kind == OpKind::kScore || op.kind == OpKind::kScoreWindow ||
          is_verdict(op.kind)) {
        refuse("the program has step " + std::string(op_name(op.kind)) + " for the " + name_ +
               " lane, which only drafts");
      }
    }
  }
}

void CpuLane::submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) {
  program_ = program;
  max_rounds_ = max_rounds;
  run_ = run;
  TapRows* const taps = has(program.body, OpKind::kScoreWindow) ? taps_.get() : nullptr;
  if (taps != nullptr) taps->start(state);
  if (executor_ != nullptr) steps_.emplace(executor_.get(), state, run, taps);
  bool drafts = false;
  verdicts_ = static_cast<size_t>(state->num_slots);
  round_ = 0;
  next_ = 0;
  waiting_since_ns_ = 0;
  int num_events = 0;
  for (const auto* ops : {&program.prologue, &program.body}) {
    for (const Op& op : *ops) {
      num_events = std::max(num_events, op.event + 1);
      if (is_verdict(op.kind)) run->ring.watch(device_->bell());
      drafts = drafts || op.kind == OpKind::kPrefillContext || op.kind == OpKind::kDraft;
    }
  }
  if (drafts) drafter_->start(state, run);
  waits_.assign(num_events, 0);
  trace_.reset(program.prologue.size() +
               program.body.size() * static_cast<size_t>(std::min(max_rounds, kTracedRounds)));
  if (!program.empty()) device_->submit(this);
}

const Op* CpuLane::next_op() {
  for (;;) {
    const std::vector<Op>& ops = round_ == 0 ? program_.prologue : program_.body;
    if (next_ < ops.size()) return &ops[next_];
    if (round_ == max_rounds_ || program_.body.empty()) return nullptr;
    ++round_;
    next_ = 0;
  }
}

Progress CpuLane::advance() {
  if (run_->halted()) return Progress::kEnded;
  const Op* op = next_op();
  if (op == nullptr) return Progress::kEnded;
  if (op->kind == OpKind::kWait) {
    if (waiting_since_ns_ == 0) waiting_since_ns_ = now_ns();
    if (!pass(op->event)) return Progress::kBlocked;
    trace_.add(op->kind, static_cast<int>(round_), waiting_since_ns_, now_ns());
    waiting_since_ns_ = 0;
  } else if (op->kind == OpKind::kRecord) {
    run_->record(op->event);
  } else if (op->kind == OpKind::kFetchWindow || op->kind == OpKind::kFetchVerdict) {
    // Lanes on the host share one state, and a GPU's verdicts are in it before their event is recorded.
  } else if (is_verdict(op->kind) && !run_->ring.has_room(verdicts_)) {
    return Progress::kBlocked;  // without sleeping: other lanes of this device go on
  } else {
    const int64_t begin_ns = now_ns();
    perform(*op);
    trace_.add(op->kind, static_cast<int>(round_), begin_ns, now_ns());
  }
  ++next_;
  return Progress::kAdvanced;
}

bool CpuLane::pass(int event) {
  if (run_->recorded(event) <= waits_[event]) return false;
  ++waits_[event];
  return true;
}

void CpuLane::perform(const Op& op) {
  try {
    switch (op.kind) {
      case OpKind::kPrefill:
        return steps_->prefill();
      case OpKind::kPrefillContext:
        return drafter_->prefill();
      case OpKind::kFirst:
        return steps_->first();
      case OpKind::kDraft:
        return drafter_->draft();
      case OpKind::kScore:
        return steps_->score(false);
      case OpKind::kScoreWindow:
        return steps_->score(true);
      case OpKind::kVerify:
        return steps_->verify(true);
      case OpKind::kFetchWindow:
      case OpKind::kFetchVerdict:
      case OpKind::kRound:
      case OpKind::kRecord:
      case OpKind::kWait:
        return;
    }
  } catch (const Failure& failure) {
    run_->fail(failure);
  } catch (const std::bad_alloc&) {
    fail(op, FailureKind::kResource, "out of memory");
  } catch (const std::exception& error) {
    fail(op, FailureKind::kExecutor, error.what());
  } catch (...) {
    fail(op, FailureKind::kExecutor, "an unknown exception");
  }
}

void CpuLane::fail(const Op& op, FailureKind kind, const std::string& what) {
  run_->fail(Failure(kind, what + " (in step " + op_name(op.kind) + " of the " + name_ + " lane, round " +
                               std::to_string(round_) + ")"));
}

}  // namespace pearl
