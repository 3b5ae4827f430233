// Verdicts from the target's lane to the host: one producer, one consumer, bounded.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "core/event.h"
#include "sampling/logprobs.h"

namespace pearl {

// The first five have the numbers of pearl_rt/state.py. kFeeding: the prompt goes in, a chunk every round,
// beside the slots that run.
enum class FinishReason : uint8_t { kIdle, kRunning, kStop, kLength, kError, kAbort, kFeeding };

// The error message of a request that ends with FinishReason::kError.
inline std::string bad_logits_text(const char* step, const char* lane, int slot, int64_t position) {
  return std::string("NaN or infinite logits in step ") + step + " of the " + lane + " lane, sequence " +
         std::to_string(slot) + ", position " + std::to_string(position) + "; the request was ended";
}

// What one round committed for one sequence.
struct RoundResult {
  uint64_t request_id = 0;
  int32_t round = 0;  // of this sequence; 0: the first token, after the prefill
  int32_t slot = 0;
  std::vector<int32_t> token_ids;  // verified only; cut exactly at EOS, stop id or limit
  int32_t accept_len = 0;          // judged tokens that passed (before the cut)
  int32_t num_judged = 0;
  int32_t pending_before = 0;      // of the judged, how many were drafted in the window before
  bool is_refused = false;         // a rule ended the window before its first draft, and all before it stood
  std::vector<int32_t> forced;     // places in token_ids of drafts that the form of the answer forced
  std::vector<int32_t> certain;    // places of judged drafts that were certain, as a lookup's are
  int64_t num_cached_tokens = -1;  // of the prompt, whose KV rows were there before; -1: not looked for
  std::vector<Logprob> logprobs;   // of each token 1 + k entries, its own first; none unless asked for
  std::vector<Logprob> prompt_logprobs;  // round 0: of each prompt token but the first, where asked for
  FinishReason finish_reason = FinishReason::kRunning;
  int64_t t_ns = 0;   // steady clock, when the verdict was known
  std::string error;  // kError: what was found, and where
};

// The producer asks for room *before* it judges, so that what was committed is always published. If there is
// none, it does other work until its watcher is raised. close() wakes the consumer.
class ResultRing {
 public:
  ResultRing(size_t capacity, size_t max_tokens) : entries_(capacity) {
    for (RoundResult& entry : entries_) {
      entry.token_ids.reserve(max_tokens);
      entry.forced.reserve(max_tokens);
      entry.certain.reserve(max_tokens);
    }
  }

  // Producer: whether there is room for n results. `watcher` is raised by drain().
  bool has_room(size_t n) const { return entries_.size() - size() >= n; }
  void watch(Signal* watcher) { watcher_.store(watcher, std::memory_order_release); }

  void push(const RoundResult& result) {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    entries_[head % entries_.size()] = result;
    head_.store(head + 1, std::memory_order_seq_cst);
    // A reader that wants many results is not woken for each.
    if (size() >= wanted_.load(std::memory_order_seq_cst)) results_.raise();
  }

  void close() {
    closed_.store(true, std::memory_order_release);
    results_.raise();
  }

  // Consumer: appends what is there.
  void drain(std::vector<RoundResult>* out) {
    uint64_t tail = tail_.load(std::memory_order_relaxed);
    const uint64_t head = head_.load(std::memory_order_acquire);
    if (tail == head) return;
    for (; tail != head; ++tail) out->push_back(entries_[tail % entries_.size()]);
    tail_.store(tail, std::memory_order_seq_cst);
    if (Signal* watcher = watcher_.load(std::memory_order_acquire)) watcher->raise();
  }

  // Consumer: returns at >= n results, at close(), or at the deadline.
  void wait_for_results(size_t n, Clock::time_point deadline) {
    wanted_.store(n < entries_.size() / 2 ? n : entries_.size() / 2, std::memory_order_seq_cst);
    for (;;) {
      const uint32_t seen = results_.value();
      if (size() >= wanted_.load(std::memory_order_relaxed)) return;
      if (closed_.load(std::memory_order_acquire)) return;
      if (!results_.wait_until(seen, deadline, std::chrono::microseconds(0))) return;
    }
  }

  // Only while neither end uses it.
  void reset() {
    head_.store(0, std::memory_order_relaxed);
    tail_.store(0, std::memory_order_relaxed);
    wanted_.store(1, std::memory_order_relaxed);
    watcher_.store(nullptr, std::memory_order_relaxed);
    closed_.store(false, std::memory_order_release);
  }

  size_t capacity() const { return entries_.size(); }

 private:
  size_t size() const {
    const uint64_t tail = tail_.load(std::memory_order_seq_cst);
    return static_cast<size_t>(head_.load(std::memory_order_seq_cst) - tail);
  }

  std::vector<RoundResult> entries_;
  alignas(64) std::atomic<uint64_t> head_{0};  // written by the producer
  alignas(64) std::atomic<uint64_t> tail_{0};  // written by the consumer
  alignas(64) std::atomic<uint64_t> wanted_{1};
  std::atomic<bool> closed_{false};
  std::atomic<Signal*> watcher_{nullptr};
  Signal results_;
};

}  // namespace pearl
