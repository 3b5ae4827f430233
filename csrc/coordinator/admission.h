// How a run takes in more requests while it runs: those that wait for a slot and KV blocks, in order, those
// that the host gives up, and how far to draft from now on. The host writes from any thread; verify reads
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

  // What the steps of a run were made for; a request that wants more starts another run. As it stands here,
  // anybody may join.
  struct Terms {
    bool is_open = true;
    int longest_gamma = std::numeric_limits<int>::max();
    bool samples = true;  // at temperature > 0
    bool shapes = true;   // with filters and penalties
    bool tells = true;    // log-probabilities

    bool allow(const Request& request) const {
      return is_open && request.gamma <= longest_gamma && (samples || request.temperature == 0.0f) &&
             (shapes || !request.transform.any(request.temperature)) && (tells || request.num_logprobs < 0);
    }
    // What all of several lanes can do.
    void meet(const Terms& other) {
      is_open = is_open && other.is_open;
      longest_gamma = std::min(longest_gamma, other.longest_gamma);
      samples = samples && other.samples;
      shapes = shapes && other.shapes;
      tells = tells && other.tells;
    }
  };

  // Host: whether the run was made for this request, if one goes on, and fits(waiting) for those that wait,
  // in order, while none of them can get a slot.
  template <class Fits>
  bool has_place(const Request& request, Fits&& fits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return (closed_ || terms_.allow(request)) && fits(waiting_);
  }

  // Host: false if the run has ended, or is about to, or was not made for this request: start another one.
  bool submit(uint64_t id, Request request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_ || !terms_.allow(request)) return false;
    waiting_.push_back({id, std::move(request)});
    news_.store(true, std::memory_order_release);
    return true;
  }

  // Host: true if the request was still waiting, and is now forgotten; else its slot ends within a round.
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

  // Host: as State::windows, from the next round on.
  void set_windows(std::vector<int32_t> windows) {
    const std::lock_guard<std::mutex> lock(mutex_);
    windows_ = std::move(windows);
    news_.store(true, std::memory_order_release);
  }

  // Host: what never got a slot, once the run has ended.
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

  // Verify: whether anything below is worth a lock.
  bool has_news() const { return news_.load(std::memory_order_acquire); }

  std::vector<uint64_t> take_cancelled() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(cancelled_, {});
  }

  std::optional<std::vector<int32_t>> take_windows() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(windows_, std::nullopt);
  }

  // The one that has waited longest, once reserve(its request): nobody overtakes it.
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

  // Verify, when no slot is at work: false if somebody waits, else nobody can be submitted any more.
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
