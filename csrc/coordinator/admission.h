// What the host hands to a run that goes on: requests that wait for a slot and KV blocks, in order; requests
// that are cancelled; other lengths of windows. The host writes from any thread. The step verify reads
// between rounds.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/request.h"

namespace pearl {

class Admission {
 public:
  struct Waiting {
    uint64_t id;
    Request request;
  };

  // What the steps of a run were made for. A request that needs more starts another run. The defaults allow
  // every request.
  struct Terms {
    bool is_open = true;
    int longest_gamma = std::numeric_limits<int>::max();
    bool samples = true;     // at temperature > 0
    bool processors = true;  // with filters and penalties
    bool logprobs = true;    // log-probabilities

    bool allow(const Request& request) const {
      return is_open && request.gamma <= longest_gamma && (samples || request.temperature == 0.0f) &&
             (processors || !request.transform.any(request.temperature)) &&
             (logprobs || request.num_logprobs < 0);
    }
    // Keeps what the other lane can do too.
    void meet(const Terms& other) {
      is_open = is_open && other.is_open;
      longest_gamma = std::min(longest_gamma, other.longest_gamma);
      samples = samples && other.samples;
      processors = processors && other.processors;
      logprobs = logprobs && other.logprobs;
    }
  };

  // Host: whether a run that goes on was made for this request, and fits(waiting) is true of the requests
  // that wait, in order. While fits() runs, none of them gets a slot.
  template <class Fits>
  bool has_place(const Request& request, Fits&& fits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return (closed_ || terms_.allow(request)) && fits(waiting_);
  }

  // Host: false if the run has ended, is about to end, or was not made for this request. Then the request
  // starts another run.
  bool submit(uint64_t id, Request request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_ || !terms_.allow(request)) return false;
    waiting_.push_back({id, std::move(request)});
    news_.store(true, std::memory_order_release);
    return true;
  }

  // Host: true if the request was still waiting; it is dropped. Else its slot ends within a round.
  bool cancel(uint64_t id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto at = std::find_if(waiting_.begin(), waiting_.end(),
                                 [id](const Waiting& waiting) { return waiting.id == id; });
    if (at != waiting_.end()) {
      waiting_.erase(at);
      return true;
    }
    if (!closed_) cancelled_.push_back(id);
    news_.store(true, std::memory_order_release);
    return false;
  }

  // Host: new values of State::windows, from the next round on.
  void set_windows(std::vector<int32_t> windows) {
    const std::lock_guard<std::mutex> lock(mutex_);
    windows_ = std::move(windows);
    news_.store(true, std::memory_order_release);
  }

  // Host: the ids of the requests that never got a slot, once the run has ended.
  std::vector<uint64_t> take_waiting() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<uint64_t> ids;
    for (const Waiting& waiting : waiting_) ids.push_back(waiting.id);
    waiting_.clear();
    return ids;
  }

  // Only while no lane is at work.
  void open(const Terms& terms) {
    const std::lock_guard<std::mutex> lock(mutex_);
    terms_ = terms;
    waiting_.clear();
    cancelled_.clear();
    windows_.reset();
    closed_ = false;
    news_.store(false, std::memory_order_release);
  }

  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }

  // Verify: whether requests wait, were cancelled, or windows were set. Takes no lock.
  bool has_news() const { return news_.load(std::memory_order_acquire); }

  std::vector<uint64_t> take_cancelled() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(cancelled_, {});
  }

  std::optional<std::vector<int32_t>> take_windows() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(windows_, std::nullopt);
  }

  // Verify: the request that has waited longest, if reserve(request) succeeds. Later requests wait behind it.
  template <class Reserve>
  std::optional<Waiting> next(Reserve&& reserve) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_.empty()) {
      news_.store(!cancelled_.empty() || windows_, std::memory_order_release);
      return std::nullopt;
    }
    if (!reserve(waiting_.front().request)) return std::nullopt;
    Waiting first = std::move(waiting_.front());
    waiting_.pop_front();
    return first;
  }

  // Verify, when no slot is busy: false if a request waits; else the run takes no more requests.
  bool close_if_empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!waiting_.empty()) return false;
    closed_ = true;
    return true;
  }

 private:
  std::mutex mutex_;
  Terms terms_;
  std::deque<Waiting> waiting_;
  std::vector<uint64_t> cancelled_;
  std::optional<std::vector<int32_t>> windows_;
  bool closed_ = true;
  std::atomic<bool> news_{false};
};

}  // namespace pearl
