// A lane on CPU cores: runs its list of ops on its device's thread. Lanes that share a device take turns: the
// thread runs whichever can go on.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/lane.h"
#include "coordinator/run.h"
#include "coordinator/state.h"
#include "core/executor.h"
#include "cpu/lane/cpu_device.h"
#include "cpu/lane/cpu_steps.h"
#include "drafters/drafter.h"
#include "drafters/eagle/tap_rows.h"

namespace pearl {

class CpuLane : public Lane, private DeviceTask {
 public:
  // Of a model: the target's ops, or a draft's. taps: what keeps those of a target for its draft, or null.
  CpuLane(std::string name, std::shared_ptr<CpuDevice> device, std::shared_ptr<Executor> executor,
          std::shared_ptr<TapRows> taps = nullptr);
  // Of a drafter of whatever kind.
  CpuLane(std::string name, std::shared_ptr<CpuDevice> device, std::shared_ptr<Drafter> drafter);
  ~CpuLane() override;

  const std::string& name() const override { return name_; }
  Signal* bell() override { return device_->bell(); }
  void attach(const std::vector<Lane*>& lanes, size_t index, const State& state) override;
  void check(const LaneProgram& program, const State& state) const override;
  void submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) override;
  void join() override { device_->join(this); }
  bool admits() const override { return true; }
  bool adapts() const override { return true; }
  bool masks_tokens() const override { return true; }
  bool scores_prompts() const override { return executor_ != nullptr; }
  int block_size() const override { return drafter_->block_size(); }
  bool caches(const State& state) const override { return drafter_->caches(state); }
  bool finds_prefixes() const override { return drafter_->finds_prefixes(); }
  bool wants_own_words() const override { return drafter_->wants_own_words(); }
  bool drafts_rows() const override { return drafter_->has_rows(); }
  bool branches() const override { return drafter_->branches() && taps_ == nullptr; }
  const Trace& trace() const override { return trace_; }

 private:
  Progress advance() override;
  static bool has(const std::vector<Op>& ops, OpKind kind);
  const Op* next_op();  // nullptr when the last round is over
  bool pass(int event);
  void perform(const Op& op);
  void fail(const Op& op, FailureKind kind, const std::string& what);

  const std::string name_;
  const std::shared_ptr<CpuDevice> device_;
  const std::shared_ptr<Executor> executor_;  // none: only a drafter
  const std::shared_ptr<Drafter> drafter_;    // of the executor's model, or of its own kind
  const std::shared_ptr<TapRows> taps_;       // none: the executor's taps are not read

  // Set by submit, then by the device's thread.
  LaneProgram program_;
  int64_t max_rounds_ = 0;
  size_t verdicts_ = 0;  // of a round at most
  Run* run_ = nullptr;
  std::optional<CpuSteps> steps_;
  int64_t round_ = 0;            // 0 is the prologue
  size_t next_ = 0;              // op of the round
  std::vector<uint64_t> waits_;  // [num_events] waits that have passed
  int64_t waiting_since_ns_ = 0;
  Trace trace_;
};

}  // namespace pearl
