// The seam between a lane and what fills the windows of a round: one file a kind, and a lane knows no kind.
// A drafter reads what was committed from the state, and what its request may be told of rejected rows.
#pragma once

#include <string>

#include "coordinator/run.h"
#include "coordinator/state.h"

namespace pearl {

class Drafter {
 public:
  virtual ~Drafter() = default;

  // Whether State::own_words are to be kept: what the target says at rows behind a rejection.
  virtual bool wants_own_words() const { return false; }
  // Whether drafts may have rows that they were drawn from; else all are certain.
  virtual bool has_rows() const { return true; }
  // Whether it can go on behind a prompt that begins in the KV cache of an earlier one.
  virtual bool finds_prefixes() const { return true; }
  // Positions of a block of its KV cache; 0 without one.
  virtual int block_size() const { return 0; }
  // Whether a run with State::windows reads that cache and fills it. Asked before start.
  virtual bool caches(const State&) const { return block_size() > 0; }

  // Whether it can fill several windows that begin with different tokens: State::candidates.
  virtual bool branches() const { return false; }

  // Throws Failure(kRequest) if it has no room for such a state. lane: its name, for the message.
  virtual void attach(const std::string& lane, const State& state) const = 0;

  // A run begins: both outlive it.
  virtual void start(State* state, Run* run) = 0;

  // Takes in the prompts, but for the last token of each: op "prefill context".
  virtual void prefill() = 0;

  // Fills the window of each slot that runs, behind token committed + pending: window, num_draft_tokens, and
  // for each token the row that it was drawn from (draft_row) or State::is_certain. A window has at most
  // State::window_room tokens. What it drafted and the state no longer has was rejected. Op "draft".
  virtual void draft() = 0;
};

}  // namespace pearl
