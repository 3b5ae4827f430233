// Order between threads: a signal that can be slept on, and the counter behind record/wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace pearl {

using Clock = std::chrono::steady_clock;

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

inline void cpu_pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A counter that many threads raise and one waits on. Raising costs one atomic add unless the waiter
// sleeps. No wake-up is lost: the waiter reads value() *before* it looks for work, and announces its
// sleep before it compares again; both sides are sequentially consistent (Dekker).
class Signal {
 public:
  uint32_t value() const { return count_.load(std::memory_order_acquire); }

  void raise() {
    count_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }

  // Returns when value() != seen, or when the deadline has passed: true in the first case.
  bool wait_until(uint32_t seen, Clock::time_point deadline, std::chrono::microseconds spin) {
    if (spin_on(seen, spin)) return true;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    const auto changed = [&] { return count_.load(std::memory_order_seq_cst) != seen; };
    bool raised = true;
    if (deadline == Clock::time_point::max()) {
      wake_.wait(lock, changed);
    } else {
      raised = wake_.wait_until(lock, deadline, changed);
    }
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return raised;
  }

  void wait(uint32_t seen, std::chrono::microseconds spin) {
    wait_until(seen, Clock::time_point::max(), spin);
  }

 private:
  bool spin_on(uint32_t seen, std::chrono::microseconds spin) const {
    if (value() != seen) return true;
    if (spin.count() == 0) return false;
    const Clock::time_point until = Clock::now() + spin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (value() != seen) return true;
        cpu_pause();
      }
    } while (Clock::now() < until);
    return false;
  }

  alignas(64) std::atomic<uint32_t> count_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// record() publishes everything that its thread wrote; the k-th wait of a lane needs k records.
class Event {
 public:
  void record() { count_.fetch_add(1, std::memory_order_release); }
  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  void reset() { count_.store(0, std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<uint64_t> count_{0};
};

}  // namespace pearl
