// A lane on a GPU: a stream, the captured steps that are launched on it, and the arrays that they work on.
// The launcher's thread calls issue(), which queues what may be queued and never waits for the GPU.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coordinator/lane.h"
#include "coordinator/run.h"
#include "coordinator/state.h"
#include "cuda/driver/handles.h"
#include "cuda/lane/device_trace.h"
#include "cuda/lane/in_flight.h"
#include "cuda/lane/launcher.h"
#include "cuda/lane/step_table.h"
#include "cuda/memory/device_arrays.h"

namespace pearl {

class CudaLane : public Lane {
 public:
  // stream: for this lane alone, and for the capture of its steps. It lives as long as the lane.
  // reads_target: its passes read what the target's left of the same tokens, and come behind them.
  CudaLane(std::string name, std::shared_ptr<Launcher> launcher, std::shared_ptr<CudaStream> stream,
           std::shared_ptr<DeviceArrays> arrays, bool reads_target = false);
  ~CudaLane() override { join(); }

  // A captured step; one with the same key takes its place. Not while a run is in flight.
  void add_step(const StepKey& key, Step step);

  const std::string& name() const override { return name_; }
  Signal* bell() override { return launcher_->bell(); }
  void attach(const std::vector<Lane*>& lanes, size_t index, const State& state) override;
  void check(const LaneProgram& program, const State& state) const override;
  void submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) override;
  void join() override;
  bool admits() const override { return true; }
  int block_size() const override { return arrays_->sizes().block_size; }
  // Beside a draft on the host that has a KV cache, or one that reads the target's passes, each prompt is fed
  // whole.
  bool finds_prefixes() const override { return !has_host_cache_ && !reads_target_; }
  bool reads_target() const { return reads_target_; }
  Admission::Terms terms(const LaneProgram& program, const State& state) const override;
  void check_joiner(const Request& request) const override {
    arrays_->check_request(request, name_);
    if (is_target()) arrays_->check_logprobs(request.num_logprobs, name_);
  }
  const Trace& trace() const override { return trace_; }

  // From here on: the launcher's thread, for one run.
  // Uploads the requests, and makes this stream wait for the target's upload where both lanes share it.
  void begin(const InFlight& in_flight, bool timed, bool several_devices);
  // Queues ops until a wait whose record was not issued, or the end of last_round -> whether any was queued.
  bool issue(InFlight* in_flight, int64_t last_round);
  // Whether all ops up to the end of that round were queued.
  bool is_past(int64_t round) const;
  // Makes this stream wait for all that was queued on the other's.
  void wait_for(CudaLane* other);
  // Launches a graph that stands for a round of all lanes.
  void launch_round(CUgraphExec exec, int64_t round);
  // Between rounds, for a request that joins: copies; a pass of its prompt; its first verdict alone.
  void queue(const std::vector<Copy>& copies);
  void feed(const std::vector<Copy>& range);
  void judge(int slot, const std::vector<Copy>& before, const std::vector<Copy>& after);
  // All that was queued so far has that block of staging; whether it has run since.
  void mark(int block);
  bool has_passed(int block) const;
  // Whether the stream has nothing left to do. Throws CudaError for what went wrong on it.
  bool is_idle() const;
  // Returns when the stream has nothing left to do, or never will have: CudaError.
  void drain() const;
  void read_trace() { device_trace_.read(&trace_); }

  const LaneProgram& program() const { return program_; }
  int64_t max_rounds() const { return max_rounds_; }
  // The step of the body's op at that place; nullptr where it is not one launch.
  const Step* body_step(size_t index) const { return body_[index].step; }
  // What a fetch of the run copies, from another GPU; and a number that is another where the copies are.
  std::vector<Copy> fetched(OpKind kind) const;
  uint64_t fetched_key() const;
  const std::shared_ptr<Context>& context() const { return context_; }
  const DeviceArrays& arrays() const { return *arrays_; }
  CudaLane* peer() const { return peer_; }
  bool has_host_peer() const { return has_host_peer_; }
  // Whether windows of the run come from a draft on the host.
  bool has_host_draft() const;
  bool is_target() const { return index_ == 0; }
  bool is_processed() const { return key_.processed > 0; }  // the run's steps

 private:
  struct Resolved {
    Op op;
    const Step* step;  // nullptr where the op is not one launch
  };
  const Step& find(const std::string& op, StepKey key, int slot = -1) const;
  std::vector<Resolved> resolve(const std::vector<Op>& ops, const State& state) const;
  void check_order(const LaneProgram& program) const;
  const Resolved* next_op(int64_t last_round);              // nullptr: not now
  bool perform(const Resolved& next, InFlight* in_flight);  // false: it has to wait
  bool wait(int event, InFlight* in_flight);
  void compute(const Resolved& next, InFlight* in_flight);
  void prefill(bool with_last, InFlight* in_flight);
  void copy(const std::vector<Copy>& copies);
  void launch(const Step& step);
  void launch(CUgraphExec exec);
  CUevent own_event(size_t index);
  void check(CUresult code, const char* call) const;
  std::string place() const;
  std::string stream_place() const;

  const std::string name_;
  const std::shared_ptr<Launcher> launcher_;
  const std::shared_ptr<CudaStream> own_stream_;
  const std::shared_ptr<Context> context_;
  const CUstream stream_;
  const std::shared_ptr<DeviceArrays> arrays_;
  const bool reads_target_;
  mutable std::mutex steps_mutex_;
  StepTable steps_;  // guarded by steps_mutex_

  // Set by attach.
  size_t index_ = 0;
  CudaLane* peer_ = nullptr;
  bool has_host_peer_ = false;
  bool has_host_cache_ = false;  // the peer's
  bool is_last_ = true;          // of the coordinator's CUDA lanes: its submit starts the run

  // Set by submit, then by the launcher's thread.
  LaneProgram program_;
  int64_t max_rounds_ = 0;
  std::vector<Resolved> prologue_, body_;
  const Step* prefill_chunk_ = nullptr;
  std::vector<const Step*> prefill_logits_;  // [B]
  const Step* join_ = nullptr;               // where requests can join
  StepKey key_;                              // of the run's steps
  bool several_devices_ = false;
  int64_t round_ = 0;              // 0 is the prologue
  size_t next_ = 0;                // op of the round
  std::vector<uint64_t> waits_;    // [num_events] waits that were queued
  OpKind at_ = OpKind::kPrefill;   // what is being queued, for messages
  std::vector<CudaEvent> events_;  // [0] for wait_for, [1 + e] for event e of the program; kept
  std::vector<CudaEvent> marks_;   // by block; kept
  DeviceTrace device_trace_;
  Trace trace_;
};

}  // namespace pearl
