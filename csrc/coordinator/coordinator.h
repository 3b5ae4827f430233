// Runs a program over lanes, round after round, with no host in between; hands verified tokens out.
// Knows lanes, events and the ring; not what a forward pass is, nor which strategy a program is.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/lane.h"
#include "coordinator/request.h"
#include "coordinator/run.h"
#include "coordinator/state.h"

namespace pearl {

class Coordinator {
 public:
  // lanes[0] is the target's, lanes[1] the draft's if there is one. Throws Failure(kRequest) for a lane that
  // cannot hold the state or is another coordinator's.
  Coordinator(std::unique_ptr<State> state, std::vector<std::shared_ptr<Lane>> lanes, size_t ring_capacity);
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Request i runs in slot i, with KV blocks for all that it may write. Returns once the lanes have their
  // programs. Throws Failure(kRequest) for what cannot be run, and while another run goes on. Returns the
  // requests' ids, in order. windows: see State. is_ordered: false for a program whose races are wanted.
  std::vector<uint64_t> start(const Program& program, JudgeKind judge, const std::vector<Request>& requests,
                              std::vector<int32_t> windows = {}, bool is_ordered = true);

  // Other windows from the next round on, if a run goes on that admits. From any thread. Throws
  // Failure(kRequest) for what is no table.
  void set_windows(std::vector<int32_t> windows);

  // One more request for the run that goes on: it takes the next free slot once as many KV blocks are free as
  // it may come to need, in order of submission, and its prompt is fed a chunk a round beside the others.
  // From any thread. nullopt: no run goes on, or its lanes admit no requests, or its steps were made for
  // less. Throws Failure(kRequest) for what cannot be run.
  std::optional<uint64_t> submit(const Request& request);

  // Others have written to the KV caches: no prompt begins in what was there before. Throws Failure(kRequest)
  // while a run goes on.
  void forget_prefixes();

  // Whether a request would get its KV blocks now, behind those that wait, and the run that goes on, if one
  // does, was made for it. From any thread.
  bool has_place(const Request& request);

  // KV blocks that no slot holds; all of them while no run goes on. From any thread.
  int num_free_blocks() const;

  // Ends a request within a round; its last result says "abort". True if it had no slot yet: nothing follows.
  bool cancel(uint64_t id);

  // Ids of requests that were submitted and never got a slot, once the run has ended.
  std::vector<uint64_t> take_waiting();

  // Waits until there are min_results, the run has ended, or the time is up (timeout_ms < 0: never), and
  // returns what there is, in order. nullopt: the run has ended and all of it was handed out. Throws the
  // run's Failure once, after the results before it.
  std::optional<std::vector<RoundResult>> next(int64_t timeout_ms, size_t min_results);

  // Ends the run within a round; results verified before can still be had from next(). From any thread.
  void stop();

  bool running() const { return !run_.halted(); }
  int num_lanes() const { return static_cast<int>(lanes_.size()); }
  const Lane& lane(int index) const { return lanes_[index].lane(); }
  const State& state() const { return *state_; }
  // Throws while a request runs.
  const Trace& trace(int lane) const;

 private:
  class OneCaller;
  // A lane, ours until the end of this.
  class TakenLane {
   public:
    explicit TakenLane(std::shared_ptr<Lane> lane);
    ~TakenLane();
    TakenLane(TakenLane&& other) noexcept = default;
    Lane& lane() const { return *lane_; }

   private:
    std::shared_ptr<Lane> lane_;
  };
  static std::vector<TakenLane> take(std::vector<std::shared_ptr<Lane>> lanes);
  static std::vector<Signal*> distinct_bells(const std::vector<TakenLane>& lanes);

  void check(const std::vector<Request>& requests) const;
  void check(const Request& request) const;
  void check_windows(const std::vector<int32_t>& windows) const;
  bool admits() const;
  void join_lanes();

  const std::unique_ptr<State> state_;
  const std::vector<TakenLane> lanes_;
  Run run_;
  std::atomic<uint64_t> next_id_{0};
  std::atomic<bool> called_{false};  // one host thread at a time in start and next
};

}  // namespace pearl
