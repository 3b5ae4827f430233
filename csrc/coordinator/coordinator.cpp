#include "coordinator/coordinator.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "coordinator/program_check.h"
#include "core/checks.h"

namespace pearl {

namespace {

constexpr int64_t kNoLimit = int64_t{1} << 62;  // of rounds: verify ends the run

// smallest: of the vocabularies that are sampled from.
void check_transform(const Request& request, int smallest, int vocab_size) {
  const Transform& transform = request.transform;
  check(transform);
  for (const auto& [token, bias] : transform.logit_bias) {
    if (token >= vocab_size) {
      refuse("logit_bias has " + std::to_string(token) + "; the vocabulary has ids 0 to " +
             std::to_string(vocab_size - 1));
    }
  }
  if (transform.min_tokens <= 0) return;
  const std::vector<int32_t> ids = request.forbidden_ids();
  const auto forbidden = std::count_if(ids.begin(), ids.end(), [&](int32_t id) { return id < smallest; });
  if (forbidden >= smallest) {
    refuse("min_tokens " + std::to_string(transform.min_tokens) +
           " forbids every token: all of the vocabulary are end-of-text or stop ids");
  }
}

std::string blocks_text(int64_t needed, const BlockPool& pool) {
  return std::to_string(needed) + " KV blocks of " + std::to_string(pool.block_size()) +
         " tokens, and there are " + std::to_string(pool.num_blocks());
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

Coordinator::TakenLane::TakenLane(std::shared_ptr<Lane> lane) {
  if (lane == nullptr) refuse("a lane is None; leave it out of the list");
  if (!lane->take()) {
    refuse("the " + lane->name() + " lane belongs to another coordinator; give each one lanes of its own");
  }
  lane_ = std::move(lane);
}

Coordinator::TakenLane::~TakenLane() {
  if (lane_ != nullptr) lane_->give_back();
}

std::vector<Coordinator::TakenLane> Coordinator::take(std::vector<std::shared_ptr<Lane>> lanes) {
  if (lanes.empty() || lanes.size() > 2) {
    refuse(std::to_string(lanes.size()) + " lanes were given; a coordinator takes a target's, or two");
  }
  std::vector<TakenLane> taken;
  for (auto& lane : lanes) taken.emplace_back(std::move(lane));
  return taken;
}

std::vector<Signal*> Coordinator::distinct_bells(const std::vector<TakenLane>& lanes) {
  std::vector<Signal*> bells;
  for (const TakenLane& taken : lanes) {
    Signal* bell = taken.lane().bell();
    if (bell != nullptr && std::find(bells.begin(), bells.end(), bell) == bells.end()) bells.push_back(bell);
  }
  return bells;
}

Coordinator::Coordinator(std::unique_ptr<State> state, std::vector<std::shared_ptr<Lane>> lanes,
                         size_t ring_capacity)
    : state_(std::move(state)),
      lanes_(take(std::move(lanes))),
      // Room for every slot's verdict twice: a reader that waits for half a ring never starves the producer.
      run_(std::max<size_t>(ring_capacity, 2 * static_cast<size_t>(state_->num_slots)),
           static_cast<size_t>(state_->gamma_max) + 1, distinct_bells(lanes_)) {
  std::vector<Lane*> all;
  for (const TakenLane& taken : lanes_) all.push_back(&taken.lane());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i]->attach(all, i, *state_);
    state_->keeps_own_words = state_->keeps_own_words || all[i]->wants_own_words();
    if (!all[i]->finds_prefixes()) state_->prefixes.reset();
    if (state_->candidates > 1 && !all[i]->branches()) {
      refuse("candidates is " + std::to_string(state_->candidates) + ", and the " + all[i]->name() +
             " lane has one window for each sequence; pass candidates=1");
    }
  }
}

Coordinator::~Coordinator() { stop(); }

void Coordinator::check(const std::vector<Request>& requests) const {
  if (requests.empty() || requests.size() > static_cast<size_t>(state_->num_slots)) {
    refuse(std::to_string(requests.size()) + " requests were started; this coordinator has " +
           std::to_string(state_->num_slots) + " slots");
  }
  int64_t needed = 0;
  for (const Request& request : requests) {
    check(request);
    needed += state_->blocks_needed(request);
  }
  if (needed > state_->blocks.num_blocks()) {
    refuse(std::to_string(requests.size()) + " requests need " + blocks_text(needed, state_->blocks) +
           " together; start fewer, and submit the others");
  }
}

void Coordinator::check(const Request& request) const {
  const auto prompt_len = static_cast<int64_t>(request.prompt_token_ids.size());
  if (prompt_len < 1) refuse("the prompt is empty; give at least one token");
  if (prompt_len >= state_->capacity) {
    refuse("the prompt has " + std::to_string(prompt_len) + " tokens; max_model_len " +
           std::to_string(state_->capacity) + " leaves no room for an answer");
  }
  check_ids("prompt_token_ids", request.prompt_token_ids, state_->vocab_size);
  check_ids("eos_ids", request.eos_token_ids);
  check_ids("stop_ids", request.stop_token_ids);
  check_between("num_logprobs", request.num_logprobs, -1, kMostIds);
  check_between("num_prompt_logprobs", request.num_prompt_logprobs, -1, kMostIds);
  if (request.num_prompt_logprobs >= 0 && !lanes_[0].lane().scores_prompts()) {
    refuse("the " + lanes_[0].lane().name() +
           " lane reports no log-probabilities of prompts; leave prompt_logprobs out");
  }
  for (const TakenLane& taken : lanes_) {
    if (request.transform.mask == nullptr || taken.lane().masks_tokens()) continue;
    refuse("the " + taken.lane().name() + " lane masks no tokens; leave structured_outputs out");
  }
  const bool has_rule = request.stop.kind != StopKind::kNone && request.stop.kind != StopKind::kAuto;
  if (state_->candidates > 1 && (request.transform.mask != nullptr || has_rule)) {
    refuse(std::string(has_rule ? "draft_stop" : "structured_outputs") +
           " is for one window of a sequence, and candidates is " + std::to_string(state_->candidates) +
           "; leave it out, or pass candidates=1");
  }
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
  check_transform(request, std::min(state_->vocab_size, state_->draft_vocab_size), state_->vocab_size);
  const int64_t needed = state_->blocks_needed(request);
  if (needed > state_->blocks.num_blocks()) {
    refuse("the request may grow to " + std::to_string(state_->total_len(request)) + " tokens, which need " +
           blocks_text(needed, state_->blocks) + "; lower max_tokens");
  }
}

void Coordinator::check_windows(const std::vector<int32_t>& windows) const {
  if (windows.empty()) return;
  if (!std::all_of(lanes_.begin(), lanes_.end(),
                   [](const TakenLane& taken) { return taken.lane().adapts(); })) {
    refuse("windows were given for lanes that take theirs from each request; leave them out");
  }
  if (windows.size() != static_cast<size_t>(state_->num_slots) + 1) {
    refuse(std::to_string(windows.size()) + " windows were given; " + std::to_string(state_->num_slots) +
           " slots have one for each number of busy ones, and for none");
  }
  for (const int32_t window : windows) {
    if (window < 0 || window > state_->gamma_max) {
      refuse("a window is " + std::to_string(window) + "; this coordinator takes 0 to " +
             std::to_string(state_->gamma_max));
    }
  }
}

void Coordinator::set_windows(std::vector<int32_t> windows) {
  check_windows(windows);
  run_.admission.set_windows(std::move(windows));
}

std::vector<uint64_t> Coordinator::start(const Program& program, JudgeKind judge,
                                         const std::vector<Request>& requests, std::vector<int32_t> windows,
                                         bool is_ordered) {
  const OneCaller one_caller(&called_);
  if (running()) refuse("a request is running; call stop() or read next() to its end first");
  check_program(program, lanes_.size());
  if (is_ordered) check_order(program);
  check(requests);
  check_windows(windows);
  join_lanes();

  state_->judge = judge;
  state_->feeding = -1;
  state_->longest_gamma = 0;
  state_->windows = std::move(windows);
  int64_t max_rounds = 0;
  std::vector<uint64_t> ids;
  for (int slot = 0; slot < state_->num_slots; ++slot) {  // of the last run
    state_->make_known(slot);
    state_->release(slot);
  }
  state_->draft_caches = program.drafts() && lanes_.size() > 1 && lanes_[1].lane().caches(*state_);
  for (int slot = 0; slot < state_->num_slots; ++slot) {
    if (slot >= static_cast<int>(requests.size())) {
      state_->clear(slot);
      continue;
    }
    ids.push_back(next_id_.fetch_add(1, std::memory_order_relaxed));
    if (!state_->reserve(slot, requests[slot])) throw std::logic_error("KV blocks are missing");
    state_->fill(slot, ids.back(), requests[slot], true);
    max_rounds = std::max(max_rounds, state_->max_total_len[slot] - state_->prompt_len[slot]);
    if (program.drafts()) state_->longest_gamma = std::max(state_->longest_gamma, requests[slot].gamma);
  }
  state_->limit_windows();
  const LaneProgram nothing;
  const auto own = [&](size_t i) -> const LaneProgram& {
    return i < program.lanes.size() ? program.lanes[i] : nothing;
  };
  for (size_t i = 0; i < lanes_.size(); ++i) lanes_[i].lane().check(own(i), *state_);
  Admission::Terms terms;
  terms.is_open = admits();
  for (size_t i = 0; i < lanes_.size(); ++i) terms.meet(lanes_[i].lane().terms(own(i), *state_));
  run_.reset(program.num_events, terms);
  try {
    for (size_t i = 0; i < lanes_.size(); ++i) {
      lanes_[i].lane().submit(own(i), terms.is_open ? kNoLimit : max_rounds, state_.get(), &run_);
    }
  } catch (...) {
    stop();
    throw;
  }
  return ids;
}

std::optional<uint64_t> Coordinator::submit(const Request& request) {
  check(request);
  for (const TakenLane& taken : lanes_) taken.lane().check_joiner(request);
  if (!admits()) return std::nullopt;
  const uint64_t id = next_id_.fetch_add(1, std::memory_order_relaxed);
  if (!run_.admission.submit(id, request)) return std::nullopt;
  return id;
}

void Coordinator::forget_prefixes() {
  const OneCaller one_caller(&called_);
  if (running()) refuse("a request is running; call stop() or read next() to its end first");
  join_lanes();
  state_->forget_prefixes();
}

bool Coordinator::has_place(const Request& request) {
  return run_.admission.has_place(request, [&](const std::deque<Admission::Waiting>& waiting) {
    int64_t needed = state_->blocks_needed(request);
    for (const Admission::Waiting& one : waiting) needed += state_->blocks_needed(one.request);
    return needed <= num_free_blocks();
  });
}

int Coordinator::num_free_blocks() const {
  return running() ? state_->blocks.num_free() : state_->blocks.num_blocks();
}

bool Coordinator::cancel(uint64_t id) { return run_.admission.cancel(id); }

std::vector<uint64_t> Coordinator::take_waiting() {
  if (running()) refuse("requests may still get a slot; call stop() or read next() to its end first");
  return run_.admission.take_waiting();
}

std::optional<std::vector<RoundResult>> Coordinator::next(int64_t timeout_ms, size_t min_results) {
  const OneCaller one_caller(&called_);
  const auto deadline = timeout_ms < 0 || timeout_ms > int64_t{1} << 40
                            ? Clock::time_point::max()
                            : Clock::now() + std::chrono::milliseconds(timeout_ms);
  if (running()) run_.ring.wait_for_results(std::max<size_t>(min_results, 1), deadline);
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
  lanes_[lane].lane().join();
  return lanes_[lane].lane().trace();
}

bool Coordinator::admits() const {
  return std::all_of(lanes_.begin(), lanes_.end(),
                     [](const TakenLane& taken) { return taken.lane().admits(); });
}

void Coordinator::join_lanes() {
  for (const TakenLane& taken : lanes_) taken.lane().join();
}

}  // namespace pearl
