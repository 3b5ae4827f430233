#include "cpu/machine/core_set.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "core/event.h"
#include "core/thread.h"

namespace pearl {
namespace {

// How a thread waits for the next phase. Waking one that sleeps costs 25 us and more, so it polls longer than
// a phase lasts beyond a worker's own share; a thread that gives its core away every time could not be told
// from one that has lost it.
constexpr int64_t kPollNs = 20'000;
constexpr int64_t kYieldNs = 100'000;  // in all; longer than the time between two steps of a lane
// Short, while a run is on: a core that falls idle takes over a thread that waits for another core, if that
// one has waited long enough then.
constexpr int64_t kNapNs = 100'000;

std::string list_of(const std::vector<int>& cpus) {
  std::string text;
  for (int cpu : cpus) text += (text.empty() ? "" : ", ") + std::to_string(cpu);
  return "[" + text + "]";
}

// The upper half, for the kernel.
void* upper_half(std::atomic<uint64_t>* value) {
  static_assert(sizeof *value == sizeof(uint64_t) && std::atomic<uint64_t>::is_always_lock_free);
  return reinterpret_cast<char*>(value) + (std::endian::native == std::endian::little ? 4 : 0);
}

// Sleeps while the upper half is `seen`, until it is woken or `ns` have passed; without end for 0. May return
// early.
void sleep_on(std::atomic<uint64_t>* value, uint32_t seen, int64_t ns) {
  const timespec timeout{0, static_cast<long>(ns)};
  syscall(SYS_futex, upper_half(value), FUTEX_WAIT_PRIVATE, seen, ns == 0 ? nullptr : &timeout, nullptr, 0);
}

void wake_all(std::atomic<uint64_t>* value) {
  syscall(SYS_futex, upper_half(value), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
}

void keep_to(pthread_t thread, const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : cpus) CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread, sizeof set, &set);
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

CoreSet::CoreSet(std::vector<int> cpus, bool is_pinned) : cpus_(std::move(cpus)) {
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
  ranges_ = std::make_unique<Range[]>(cpus_.size());
  helpers_.reserve(cpus_.size());
  try {
    for (int worker = 1; worker < size(); ++worker) {
      const std::string purpose = "core " + std::to_string(cpus_[worker]);
      helpers_.push_back(started_thread(purpose, [this, worker] { help(worker); }));
      const pthread_t thread = helpers_.back().native_handle();
      pthread_setname_np(thread, "pearl-core");
      // A thread inherits its creator's mask, which may be one CPU.
      keep_to(thread, is_pinned ? cpus_ : allowed);
    }
  } catch (...) {
    stop();  // those that run: each is joined where it is dropped
    throw;
  }
}

CoreSet::~CoreSet() { stop(); }

void CoreSet::stop() {
  stopping_ = true;
  phase_.fetch_add(uint64_t{1} << 32);
  wake_all(&phase_);
}

void CoreSet::run(Work& work) {
  const std::lock_guard<std::mutex> lock(running_);
  if (size() == 1) {
    for (int phase = 0, count; (count = work.begin(phase)) >= 0; ++phase) {
      for (int item = 0; item < count; ++item) work.run(phase, item, 0);
    }
    return;
  }
  work_ = &work;
  index_ = -1;
  advance(phase().tag);
  take_part(0);
}

CoreSet::Phase CoreSet::phase() const {
  const uint64_t both = phase_.load(std::memory_order_acquire);
  return {static_cast<uint32_t>(both >> 32), static_cast<int>(both & 0xFFFFFFFF)};
}

// A thread may come here with a phase that has ended. Then every range that has items carries that tag and is
// used up, or a later one; ranges without items are never touched. So it takes nothing.
bool CoreSet::take_from(int owner, bool from_front, const Phase& phase, int* item) {
  const int first = first_item(phase.count, owner), last = first_item(phase.count, owner + 1);
  if (first == last) return false;
  std::atomic<uint64_t>& taken = ranges_[owner].taken;
  uint64_t before = taken.load(std::memory_order_acquire);
  for (;;) {
    const auto tag = static_cast<uint32_t>(before >> 32);
    const bool is_new = static_cast<int32_t>(tag - phase.tag) < 0;
    if (!is_new && tag != phase.tag) return false;
    const int front = is_new ? 0 : static_cast<int>(before >> 16 & 0xFFFF);
    const int back = is_new ? 0 : static_cast<int>(before & 0xFFFF);
    if (front + back >= last - first) return false;
    const uint64_t counts = static_cast<uint64_t>(front + from_front) << 16 | (back + !from_front);
    const uint64_t after = static_cast<uint64_t>(phase.tag) << 32 | counts;
    if (taken.compare_exchange_weak(before, after, std::memory_order_acq_rel, std::memory_order_acquire)) {
      *item = from_front ? first + front : last - 1 - back;
      return true;
    }
  }
}

bool CoreSet::take(int worker, const Phase& phase, int* item) {
  if (take_from(worker, true, phase, item)) return true;
  for (int i = 1; i < size(); ++i) {
    if (take_from((worker + i) % size(), false, phase, item)) return true;
  }
  return false;
}

void CoreSet::take_part(int worker) {
  for (;;) {
    const Phase now = phase();
    if (now.count == 0) return;
    int mine = 0;
    for (int item; take(worker, now, &item); ++mine) work_->run(index_, item, worker);
    if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == now.count) {
      advance(now.tag);
    } else {
      wait_while(now.tag, true);
    }
  }
}

void CoreSet::advance(uint32_t tag) {
  done_.store(0, std::memory_order_relaxed);
  int count = 0;
  while (count == 0) count = work_->begin(++index_);
  const uint64_t next = static_cast<uint64_t>(tag + 1) << 32 | static_cast<uint32_t>(std::max(count, 0));
  // Either this thread sees that one sleeps, or that one sees the tag: both are sequentially consistent.
  phase_.store(next, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(&phase_);
}

// is_running: an item of that phase is being run elsewhere; else no run is on.
void CoreSet::wait_while(uint32_t tag, bool is_running) {
  const auto same = [&] { return phase_.load(std::memory_order_seq_cst) >> 32 == tag; };
  const int64_t begin = now_ns();
  for (int64_t waited = 0; waited < kYieldNs; waited = now_ns() - begin) {
    for (int i = 0; i < 64; ++i) {
      if (!same()) return;
      if (waited < kPollNs) cpu_pause();
    }
    if (waited >= kPollNs) sched_yield();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (same()) sleep_on(&phase_, tag, is_running ? kNapNs : 0);
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

void CoreSet::help(int worker) {
  while (!stopping_) {
    take_part(worker);
    const Phase now = phase();
    if (now.count == 0 && !stopping_) wait_while(now.tag, false);
  }
}

}  // namespace pearl
