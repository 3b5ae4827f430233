// How a run takes in more requests while it runs: those that wait for a slot, in order, and those that the
// host gives up. The host writes from any thread; verify reads between rounds.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
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

  // Host: false if the run has ended, or is about to: start another one.
  bool submit(uint64_t id, Request request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return false;
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

  // Host: what never got a slot, once the run has ended.
  std::vector<uint64_t> take_waiting() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<uint64_t> ids;
    for (const Waiting& waiting : waiting_) ids.push_back(waiting.id);
    waiting_.clear();
    return ids;
  }

  // Only while no lane is at work.
  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.clear();
    cancelled_.clear();
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

  std::optional<Waiting> next() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_.empty()) {
      news_.store(!cancelled_.empty(), std::memory_order_release);
      return std::nullopt;
    }
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
  std::deque<Waiting> waiting_;
  std::vector<uint64_t> cancelled_;
  bool closed_ = true;
  std::atomic<bool> news_{false};
};

}  // namespace pearl
