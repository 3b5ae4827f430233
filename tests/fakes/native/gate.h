// A place at which a step holds its stream, until a test opens it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

class Gate {
 public:
  void close(const std::string& op, int nth) {
    const std::lock_guard<std::mutex> lock(mutex_);
    op_ = op;
    left_ = nth;
    is_open_ = false;
  }
  void open() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_open_ = true;
    }
    changed_.notify_all();
  }
  void pass(const std::string& op) {
    if (is_open_.load(std::memory_order_relaxed)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    if (op != op_ || --left_ != 0) return;
    num_held_ += 1;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_open_.load(); });
  }
  bool wait_until_held(int timeout_ms) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return num_held_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> is_open_{true};
  std::string op_;
  int left_ = 0;
  int num_held_ = 0;
};
