// What the lanes of one coordinator share while a request runs: events, the word that ends it, and why.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/admission.h"
#include "coordinator/ring.h"
#include "core/event.h"
#include "core/failure.h"

namespace pearl {

class Run {
 public:
  // bells: one for each thread that may sleep in a wait.
  Run(size_t ring_capacity, size_t max_tokens, std::vector<Signal*> bells)
      : ring(ring_capacity, max_tokens), bells_(std::move(bells)) {}

  // Only while no lane is at work.
  void reset(int num_events, const Admission::Terms& terms = {}) {
    if (num_events != num_events_) events_ = std::make_unique<Event[]>(num_events);
    num_events_ = num_events;
    for (int i = 0; i < num_events; ++i) events_[i].reset();
    failure_.reset();
    ring.reset();
    admission.open(terms);
    halted_.store(false, std::memory_order_release);
  }

  void record(int event) {
    events_[event].record();
    wake();
  }
  uint64_t recorded(int event) const { return events_[event].count(); }
  int num_events() const { return num_events_; }

  // Finished, stopped or failed: no lane begins another op, and each that sleeps is woken.
  void halt() {
    halted_.store(true, std::memory_order_release);
    admission.close();
    wake();
    ring.close();
  }
  bool halted() const { return halted_.load(std::memory_order_acquire); }

  // The first failure is the one that is reported.
  void fail(Failure failure) {
    {
      const std::lock_guard<std::mutex> lock(failure_mutex_);
      if (!failure_) failure_.emplace(std::move(failure));
    }
    halt();
  }
  std::optional<Failure> take_failure() {
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    return std::exchange(failure_, std::nullopt);
  }

  ResultRing ring;
  Admission admission;

 private:
  void wake() {
    for (Signal* bell : bells_) bell->raise();
  }

  const std::vector<Signal*> bells_;
  std::unique_ptr<Event[]> events_;
  int num_events_ = 0;
  std::atomic<bool> halted_{true};
  std::mutex failure_mutex_;
  std::optional<Failure> failure_;
};

}  // namespace pearl
