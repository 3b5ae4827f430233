// The seam between the coordinator and a backend: a queue of ops on some device.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "coordinator/admission.h"
#include "core/event.h"
#include "core/program.h"
#include "core/trace.h"

namespace pearl {

class Run;
struct State;

class Lane {
 public:
  virtual ~Lane() = default;

  virtual const std::string& name() const = 0;

  // What Run must raise for this lane to look at events and at halt again; lanes of one thread share it.
  virtual Signal* bell() = 0;

  // This lane is lanes[index] of a coordinator, beside the others, until it is taken for another one. Throws
  // Failure(kRequest) if it has no room for such a state, or cannot work beside those lanes.
  virtual void attach(const std::vector<Lane*>& lanes, size_t index, const State& state) = 0;

  // Throws Failure(kRequest) for what submit could not run. Asked of all lanes before any is given work.
  virtual void check(const LaneProgram& program, const State& state) const = 0;

  // Returns at once. The lane runs the prologue, then the body until run.halted(), at most max_rounds times.
  // State and run outlive the request.
  virtual void submit(const LaneProgram& program, int64_t max_rounds, State* state, Run* run) = 0;

  // Returns when the lane is idle, which it is within a round of run.halt() (a GPU's: within rounds_ahead).
  virtual void join() = 0;

  // Whether requests can join a run: its score and draft then feed prompts too.
  virtual bool admits() const { return false; }

  // Positions of a block of its KV cache, if the state's block tables are its; else 0.
  virtual int block_size() const { return 0; }

  // Whether a run that drafts there, with State::windows, reads and fills that cache. Asked before submit.
  virtual bool caches(const State&) const { return block_size() > 0; }

  // Whether a prompt may begin in blocks that others have filled: State::prefixes.
  virtual bool finds_prefixes() const { return false; }

  // Whether its drafter asks for State::own_words.
  virtual bool wants_own_words() const { return false; }

  // Whether a window may have rows that its tokens were drawn from; else all drafts are certain.
  virtual bool drafts_rows() const { return true; }

  // Whether a sequence may have several windows beside one another: State::candidates.
  virtual bool branches() const { return false; }

  // Whether windows may change from round to round; else a run has those of its requests.
  virtual bool adapts() const { return false; }

  // Whether it masks tokens that the form of an answer does not allow.
  virtual bool masks_tokens() const { return false; }

  // Whether it reports log-probabilities of a prompt's tokens.
  virtual bool scores_prompts() const { return false; }

  // The requests that such a run can take in later. Asked before submit.
  virtual Admission::Terms terms(const LaneProgram&, const State&) const { return {}; }

  // Throws Failure(kRequest) for a request that would not fit, in whatever run. From any thread.
  virtual void check_joiner(const Request&) const {}

  // Of the last request; only while the lane is idle.
  virtual const Trace& trace() const = 0;

  // One coordinator at a time -> whether the lane was free.
  bool take() { return !taken_.exchange(true, std::memory_order_acq_rel); }
  void give_back() { taken_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> taken_{false};
};

}  // namespace pearl
