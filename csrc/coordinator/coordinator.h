// Runs a program over lanes, round after round, with no host in between; hands verified tokens out.
// Knows lanes, events and the ring; not what a forward pass is, nor which strategy a program is.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/lane.h"
#include "coordinator/run.h"
#include "coordinator/state.h"

namespace pearl {

struct Request {
  std::vector<int32_t> prompt_token_ids;
  int gamma = 0;
  float temperature = 0.0f;
  uint64_t seed = 0;
  int64_t max_tokens = 128;
  std::vector<int32_t> eos_token_ids;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
};

class Coordinator {
 public:
  // lanes[0] is the target's, lanes[1] the draft's if there is one.
  Coordinator(std::unique_ptr<State> state, std::vector<std::unique_ptr<Lane>> lanes, size_t ring_capacity);
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Request i runs in slot i. Returns once the lanes have their programs. Throws Failure(kRequest) for what
  // cannot be run, and while another request runs.
  void start(const Program& program, JudgeKind judge, const std::vector<Request>& requests);

  // Waits until there are min_results, the run has ended, or the time is up (timeout_ms < 0: never), and
  // returns what there is, in order. nullopt: the run has ended and all of it was handed out. Throws the
  // run's Failure once, after the results before it.
  std::optional<std::vector<RoundResult>> next(int64_t timeout_ms, size_t min_results);

  // Ends the run within a round; results verified before can still be had from next(). From any thread.
  void stop();

  bool running() const { return !run_.halted(); }
  int num_lanes() const { return static_cast<int>(lanes_.size()); }
  const Lane& lane(int index) const { return *lanes_[index]; }
  const State& state() const { return *state_; }
  // Throws while a request runs.
  const Trace& trace(int lane) const;

 private:
  class OneCaller;
  void check(const Program& program, const std::vector<Request>& requests) const;
  void fill_slot(int slot, const Request& request);
  void join_lanes();

  const std::unique_ptr<State> state_;
  const std::vector<std::unique_ptr<Lane>> lanes_;
  Run run_;
  std::atomic<bool> called_{false};  // one host thread at a time in start and next
};

}  // namespace pearl
