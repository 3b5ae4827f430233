// The seam between lanes and forward passes. It knows nothing of strategies, sampling or threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace pearl {

// Consecutive tokens of one sequence.
struct Segment {
  int slot;                  // no other segment of a call has it; it may have blocks that this one reads,
                             // and none that this one writes
  const int32_t* token_ids;  // [num_tokens]
  int num_tokens;
  int64_t start;   // position of token_ids[0]; KV rows [start, start + num_tokens) are written, rows
                   // below are read
  int num_logits;  // logits of the last num_logits tokens are wanted (0..num_tokens)
  float* logits;   // [num_logits, logits_size] fp32, row-major, owned by the caller
  const int32_t* block_table =
      nullptr;  // [num_blocks] the sequence's KV blocks in order; null: the slot's own
  int num_blocks = 0;
  int num_here = 0;       // rows that lie at `logits`, where `rest` has the others
  float* rest = nullptr;  // null: all lie at `logits`
  float* taps = nullptr;  // [num_tokens, tap_size()] where each token's taps go; null: nowhere
  // Of the last tokens, how many see each other, whichever comes first: their rows attend to all rows up to
  // the last token's. Those before them, and all if it is 0, attend to rows up to their own.
  int num_open = 0;
  // Of a head: [num_tokens, tap_size()] the taps that each token is fed with; null: it is one token, and is
  // fed with what the head itself computed at the last token of the slot.
  const float* features = nullptr;

  // Where the logits of the i-th of the tokens that are wanted go.
  float* row(int i, int vocab_size) const {
    const bool is_here = rest == nullptr || i < num_here;
    return is_here ? logits + int64_t{i} * vocab_size : rest + int64_t{i - num_here} * vocab_size;
  }
};

// The place for one thread in an executor; a second one is refused at once.
class OneThread {
 public:
  explicit OneThread(std::atomic<bool>* busy) : busy_(busy) {
    if (busy_->exchange(true, std::memory_order_acquire)) {
      throw std::logic_error("two threads called one executor at once");
    }
  }
  ~OneThread() { busy_->store(false, std::memory_order_release); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  std::atomic<bool>* const busy_;
};

// A model and its KV cache, a pool of blocks of block_size positions. Where a segment has no block table,
// slot s owns the ceil(max_model_len / block_size) blocks from s times that number on, as far as the pool
// reaches.
class Executor {
 public:
  virtual ~Executor() = default;

  // Any total number of tokens (a prefill is cut as the executor likes); synchronous; called by any
  // one thread at a time. The bits of a row do not depend on what else is in the call.
  virtual void forward(const Segment* segments, int num_segments) = 0;

  // Rows [first, first + count) of a block, of every layer, become those of another one; its rows behind
  // them are undefined afterwards. Not while forward runs.
  virtual void copy_rows(int from, int to, int first, int count) = 0;

  virtual int vocab_size() const = 0;                       // ids that it can be fed
  virtual int logits_size() const { return vocab_size(); }  // of a row: a head may have fewer
  virtual int64_t tap_size() const { return 0; }  // numbers of a row of taps that it keeps, or is fed with
  virtual int64_t max_model_len() const = 0;      // KV rows of a sequence
  virtual int num_slots() const = 0;
  virtual int num_blocks() const = 0;
  virtual int block_size() const = 0;
};

// What reads the taps of a model's passes (EAGLE-3), beside its logits.
class TapReader {
 public:
  virtual ~TapReader() = default;

  // Before a pass: says where the taps of its segments go.
  virtual void place(std::vector<Segment>* segments) = 0;
  // Behind it.
  virtual void take(const std::vector<Segment>& segments) = 0;
};

}  // namespace pearl
