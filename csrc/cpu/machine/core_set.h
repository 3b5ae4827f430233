// A fixed number of threads, one for each of a set of CPUs, that do one piece of work together.
// Knows nothing of models or lanes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace pearl {

// The CPUs this process may run on, ascending.
std::vector<int> affinity_cpus();

// Phases one after the other, each of independent items. Any worker may run any item: what an item writes
// must not depend on which one does.
class Work {
 public:
  virtual ~Work() = default;
  // The items of a phase, 0 to CoreSet::kMostItems; negative: there is no such phase, and the run ends.
  // Called for phase 0, 1, .. by one worker at a time, when every item before is done.
  virtual int begin(int phase) = 0;
  // One item; worker is in [0, size). Must not throw.
  virtual void run(int phase, int item, int worker) = 0;
};

// One helper thread per CPU but the first. A caller of run() takes part as worker 0, so that a set of one
// core costs nothing. A worker takes the items of its own range first, which is the same in each run, then
// those at the ends of the others'. A thread that has lost its core delays a phase only by an item that it
// holds, and a run in which it holds none not at all: the others take its range, and run() does not wait for
// it. Threads that wait poll for a moment, then give their core to others, then sleep.
class CoreSet {
 public:
  static constexpr int kMostItems = 60000;  // a range counts them in 16 bits

  // is_pinned: threads keep to these CPUs; else they run where the process may, and the number counts.
  // Throws std::invalid_argument for an empty list, a CPU named twice, or one this process may not use;
  // Failure(kResource) if a helper's thread cannot be had.
  explicit CoreSet(std::vector<int> cpus, bool is_pinned = false);
  ~CoreSet();
  CoreSet(const CoreSet&) = delete;
  CoreSet& operator=(const CoreSet&) = delete;

  int size() const { return static_cast<int>(cpus_.size()); }
  const std::vector<int>& cpus() const { return cpus_; }

  // The first item of a worker's own range in a phase of `count` items; of worker size(): count.
  int first_item(int count, int worker) const { return static_cast<int>(int64_t{count} * worker / size()); }

  // Returns when the work is done. One run at a time: a second caller waits.
  void run(Work& work);

  // body(item, worker) for each item in [0, count), in one phase.
  template <class Body>
  void run(int count, Body&& body) {
    struct OnePhase final : Work {
      int count;
      std::remove_reference_t<Body>* body;
      int begin(int phase) override { return phase == 0 ? count : -1; }
      void run(int, int item, int worker) override { (*body)(item, worker); }
    } work;
    work.count = count;
    work.body = &body;
    run(work);
  }

 private:
  // What one worker took of its range: a tag of the phase, then the number taken from the front and from the
  // back, 16 bits each. An older tag: nothing yet.
  struct alignas(64) Range {
    std::atomic<uint64_t> taken{0};
  };
  struct Phase {
    uint32_t tag;
    int count;  // 0: no run is on
  };

  Phase phase() const;
  bool take_from(int owner, bool from_front, const Phase& phase, int* item);
  bool take(int worker, const Phase& phase, int* item);
  void take_part(int worker);  // until the run ends
  void advance(uint32_t tag);  // every item of that phase is done: opens the next one
  void wait_while(uint32_t tag, bool is_running);
  void help(int worker);
  void stop();  // lets the helpers that there are end

  std::vector<int> cpus_;
  std::mutex running_;
  std::unique_ptr<Range[]> ranges_;
  // Written by who opens a phase, and read only by who holds an item of it.
  Work* work_ = nullptr;
  int index_ = 0;                               // of the phase in work_
  alignas(64) std::atomic<uint64_t> phase_{0};  // tag << 32 | count; threads sleep on the half with the tag
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<int> done_{0};  // items of the phase
  alignas(64) std::atomic<int> sleepers_{0};
  std::vector<std::jthread> helpers_;
};

}  // namespace pearl
