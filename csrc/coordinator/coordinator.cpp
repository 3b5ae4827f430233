#include "coordinator/coordinator.h"

#include <algorithm>
#include <cmath>

namespace pearl {

namespace {

std::vector<Signal*> distinct_bells(const std::vector<std::unique_ptr<Lane>>& lanes) {
  std::vector<Signal*> bells;
  for (const auto& lane : lanes) {
    Signal* bell = lane->bell();
    if (bell != nullptr && std::find(bells.begin(), bells.end(), bell) == bells.end()) bells.push_back(bell);
  }
  return bells;
}

[[noreturn]] void refuse(const std::string& what) { throw Failure(FailureKind::kRequest, what); }

void check_ids(const std::vector<int32_t>& ids, int vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      refuse("prompt_token_ids[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
             "; the vocabulary has ids 0 to " + std::to_string(vocab_size - 1));
    }
  }
}

}  // namespace

// Holds the one place for a host thread in start or next.
class Coordinator::OneCaller {
 public:
  explicit OneCaller(std::atomic<bool>* called) : called_(called) {
    if (called_->exchange(true, std::memory_order_acquire)) {
      refuse("this coordinator is in use by another thread; give each thread its own engine");
    }
  }
  ~OneCaller() { called_->store(false, std::memory_order_release); }
  OneCaller(const OneCaller&) = delete;
  OneCaller& operator=(const OneCaller&) = delete;

 private:
  std::atomic<bool>* const called_;
};

Coordinator::Coordinator(std::unique_ptr<State> state, std::vector<std::unique_ptr<Lane>> lanes,
                         size_t ring_capacity)
    : state_(std::move(state)),
      lanes_(std::move(lanes)),
      // Room for every slot's verdict twice: a reader that waits for half a ring never starves the producer.
      run_(std::max<size_t>(ring_capacity, 2 * static_cast<size_t>(state_->num_slots)),
           static_cast<size_t>(state_->gamma_max) + 1, distinct_bells(lanes_)) {}

Coordinator::~Coordinator() { stop(); }

void Coordinator::check(const Program& program, const std::vector<Request>& requests) const {
  if (program.lanes.empty() || program.lanes.size() > lanes_.size()) {
    refuse("the program has " + std::to_string(program.lanes.size()) + " lanes; this coordinator has " +
           std::to_string(lanes_.size()));
  }
  for (const LaneProgram& lane : program.lanes) {
    for (const auto* ops : {&lane.prologue, &lane.body}) {
      for (const Op& op : *ops) {
        const bool ordered = op.kind == OpKind::kRecord || op.kind == OpKind::kWait;
        if (ordered && (op.event < 0 || op.event >= program.num_events)) {
          refuse("event " + std::to_string(op.event) + " of the program is not one of its " +
                 std::to_string(program.num_events));
        }
      }
    }
  }
  if (requests.empty() || requests.size() > static_cast<size_t>(state_->num_slots)) {
    refuse(std::to_string(requests.size()) + " requests were started; this coordinator has " +
           std::to_string(state_->num_slots) + " slots");
  }
  for (const Request& request : requests) {
    const auto prompt_len = static_cast<int64_t>(request.prompt_token_ids.size());
    if (prompt_len < 1) refuse("the prompt is empty; give at least one token");
    if (prompt_len >= state_->capacity) {
      refuse("the prompt has " + std::to_string(prompt_len) + " tokens; max_model_len " +
             std::to_string(state_->capacity) + " leaves no room for an answer");
    }
    check_ids(request.prompt_token_ids, state_->vocab_size);
    if (request.max_tokens < 1) {
      refuse("max_tokens is " + std::to_string(request.max_tokens) + "; it must be at least 1");
    }
    if (request.gamma < 0 || request.gamma > state_->gamma_max) {
      refuse("gamma is " + std::to_string(request.gamma) + "; this coordinator takes 0 to " +
             std::to_string(state_->gamma_max));
    }
    if (!std::isfinite(request.temperature) || request.temperature < 0.0f) {
      refuse("temperature is " + std::to_string(request.temperature) + "; it must be 0 (greedy) or above");
    }
  }
}

void Coordinator::fill_slot(int slot, const Request& request) {
  State& s = *state_;
  const auto prompt_len = static_cast<int64_t>(request.prompt_token_ids.size());
  std::copy(request.prompt_token_ids.begin(), request.prompt_token_ids.end(), s.tokens(slot));
  s.prompt_len[slot] = prompt_len;
  s.max_total_len[slot] = std::min(s.capacity - prompt_len, request.max_tokens) + prompt_len;
  s.gamma[slot] = request.gamma;
  s.temperature[slot] = request.temperature;
  s.seed[slot] = request.seed;
  s.stop_token_ids[slot] = request.stop_token_ids;
  if (!request.ignore_eos) {
    s.stop_token_ids[slot].insert(s.stop_token_ids[slot].end(), request.eos_token_ids.begin(),
                                  request.eos_token_ids.end());
  }
  s.committed[slot] = prompt_len;
  s.pending[slot] = 0;
  s.finish_reason[slot] = FinishReason::kRunning;
  s.num_draft_tokens[slot] = 0;
  s.num_rows[slot] = 0;
}

void Coordinator::start(const Program& program, JudgeKind judge, const std::vector<Request>& requests) {
  const OneCaller one_caller(&called_);
  if (running()) refuse("a request is running; call stop() or read next() to its end first");
  check(program, requests);
  join_lanes();

  state_->judge = judge;
  int64_t max_rounds = 0;
  for (int slot = 0; slot < state_->num_slots; ++slot) {
    if (slot >= static_cast<int>(requests.size())) {
      state_->finish_reason[slot] = FinishReason::kIdle;
      state_->prompt_len[slot] = 0;
      continue;
    }
    fill_slot(slot, requests[slot]);
    max_rounds = std::max(max_rounds, state_->max_total_len[slot] - state_->prompt_len[slot]);
  }
  run_.reset(program.num_events);
  const LaneProgram nothing;
  try {
    for (size_t i = 0; i < lanes_.size(); ++i) {
      const LaneProgram& own = i < program.lanes.size() ? program.lanes[i] : nothing;
      lanes_[i]->submit(own, max_rounds, state_.get(), &run_);
    }
  } catch (...) {
    stop();
    throw;
  }
}

std::optional<std::vector<RoundResult>> Coordinator::next(int64_t timeout_ms, size_t min_results) {
  const OneCaller one_caller(&called_);
  const auto deadline = timeout_ms < 0 || timeout_ms > int64_t{1} << 40
                            ? Clock::time_point::max()
                            : Clock::now() + std::chrono::milliseconds(timeout_ms);
  run_.ring.wait_for_results(std::max<size_t>(min_results, 1), deadline);
  std::vector<RoundResult> results;
  if (running()) {
    run_.ring.drain(&results);
    return results;
  }
  join_lanes();
  run_.ring.drain(&results);
  if (!results.empty()) return results;
  if (const std::optional<Failure> failure = run_.take_failure()) throw *failure;
  return std::nullopt;
}

void Coordinator::stop() {
  run_.halt();
  join_lanes();
}

const Trace& Coordinator::trace(int lane) const {
  if (running()) refuse("the trace can be read when the request has ended; call stop() first");
  lanes_[lane]->join();
  return lanes_[lane]->trace();
}

void Coordinator::join_lanes() {
  for (const auto& lane : lanes_) lane->join();
}

}  // namespace pearl
