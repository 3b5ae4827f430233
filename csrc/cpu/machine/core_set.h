// A fixed set of CPU cores that run one function together (single program, multiple data).
// Knows nothing of models or lanes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace pearl {

// The CPUs this process may run on, ascending.
std::vector<int> affinity_cpus();

// One helper thread per CPU but the first, each pinned. A caller of run() takes part as index 0, so that a
// set of one core costs nothing. Helpers spin for a short while after a run, then sleep.
class CoreSet {
 public:
  // Throws std::invalid_argument for an empty list, a CPU named twice, or one this process may not use;
  // Failure(kResource) if a helper's thread cannot be had.
  explicit CoreSet(std::vector<int> cpus);
  ~CoreSet();
  CoreSet(const CoreSet&) = delete;
  CoreSet& operator=(const CoreSet&) = delete;

  int size() const { return static_cast<int>(cpus_.size()); }
  const std::vector<int>& cpus() const { return cpus_; }

  // Binds the calling thread to the set's first core; for the thread that will call run().
  void pin_calling_thread() const;

  // body(index) on every core, index 0 on the calling thread; returns when all are done. body must not throw.
  // One run at a time: a second caller waits.
  template <class Body>
  void run(Body&& body) {
    if (size() == 1) {
      const std::lock_guard<std::mutex> lock(running_);
      body(0);
      return;
    }
    run_erased(
        [](void* context, int index) { (*static_cast<std::remove_reference_t<Body>*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Inside run(): returns when every core has called it as often.
  void barrier() {
    if (size() > 1) wait_for_all();
  }

 private:
  using Function = void (*)(void* context, int index);

  void run_erased(Function function, void* context);
  void wait_for_all();
  void help(int index);
  void stop();  // lets the helpers that there are end

  std::vector<int> cpus_;
  std::mutex running_;
  // set by run()
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};  // runs started; helpers wait for it to change
  bool stopping_ = false;
  // set by wait_for_all()
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::vector<std::jthread> helpers_;
};

}  // namespace pearl
