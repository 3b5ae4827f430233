#include "cpu/machine/core_set.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/event.h"
#include "core/thread.h"

namespace pearl {
namespace {

constexpr int kSpinsBeforeYield = 20000;  // about 0.2 ms: a helper that waits longer was descheduled
constexpr int kSpinsBeforeSleep = 10000;  // about 0.1 ms: longer than the time between two steps of a lane

std::string list_of(const std::vector<int>& cpus) {
  std::string text;
  for (int cpu : cpus) text += (text.empty() ? "" : ", ") + std::to_string(cpu);
  return "[" + text + "]";
}

bool pin(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(thread, sizeof set, &set) == 0;
}

}  // namespace

// The process's mask, not the calling thread's, which may be pinned already.
std::vector<int> affinity_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(getpid(), sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

CoreSet::CoreSet(std::vector<int> cpus) : cpus_(std::move(cpus)) {
  const std::vector<int> allowed = affinity_cpus();
  if (cpus_.empty())
    throw std::invalid_argument("a core set needs at least one CPU; there are " + list_of(allowed));
  for (size_t i = 0; i < cpus_.size(); ++i) {
    if (std::find(allowed.begin(), allowed.end(), cpus_[i]) == allowed.end()) {
      throw std::invalid_argument("CPU " + std::to_string(cpus_[i]) +
                                  " is not one that this process may use: " + list_of(allowed));
    }
    if (std::find(cpus_.begin(), cpus_.begin() + i, cpus_[i]) != cpus_.begin() + i) {
      throw std::invalid_argument("CPU " + std::to_string(cpus_[i]) + " is named twice in " + list_of(cpus_));
    }
  }
  helpers_.reserve(cpus_.size());
  try {
    for (int index = 1; index < size(); ++index) {
      const std::string purpose = "core " + std::to_string(cpus_[index]);
      helpers_.push_back(started_thread(purpose, [this, index] { help(index); }));
      pin(helpers_.back().native_handle(), cpus_[index]);
    }
  } catch (...) {
    stop();  // those that run: each is joined where it is dropped
    throw;
  }
}

CoreSet::~CoreSet() { stop(); }

void CoreSet::stop() {
  stopping_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
}

void CoreSet::pin_calling_thread() const { pin(pthread_self(), cpus_[0]); }

void CoreSet::run_erased(Function function, void* context) {
  const std::lock_guard<std::mutex> lock(running_);
  function_ = function;
  context_ = context;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  function(context, 0);
  wait_for_all();
}

void CoreSet::wait_for_all() {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size() - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
    spins < kSpinsBeforeYield ? cpu_pause() : static_cast<void>(sched_yield());
  }
}

void CoreSet::help(int index) {
  for (uint32_t seen = 0;; ++seen) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpinsBeforeSleep) {
        cpu_pause();
      } else {
        epoch_.wait(seen, std::memory_order_acquire);
      }
    }
    if (stopping_) return;
    function_(context_, index);
    wait_for_all();
  }
}

}  // namespace pearl
