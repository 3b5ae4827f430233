// A set of cores and the one thread that drives it. The thread lives as long as the device: between
// requests it is parked. Knows nothing of models, programs or state.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "core/event.h"

namespace pearl {

enum class Progress { kBlocked, kAdvanced, kEnded };

// A queue of work. advance() does the next piece on the device's thread, or says that it must wait.
class DeviceTask {
 public:
  virtual ~DeviceTask() = default;
  virtual Progress advance() = 0;  // must not throw
};

class CpuDevice {
 public:
  // cpus: the thread keeps to these, or runs where it may if there are none. spin: how long it polls for an
  // event before it sleeps while it has a task (waking costs 25 us); without one it parks soon. Throws
  // Failure(kResource) for a core that this process may not use, or if its thread cannot be had.
  CpuDevice(std::vector<int> cpus, std::chrono::microseconds spin);
  ~CpuDevice();
  CpuDevice(const CpuDevice&) = delete;
  CpuDevice& operator=(const CpuDevice&) = delete;

  // The task is the device's until advance() returns kEnded. Tasks submitted first go first.
  void submit(DeviceTask* task);

  // Returns when the device does not have the task (any more).
  void join(const DeviceTask* task);

  // Raise it when a blocked task may go on.
  Signal* bell() { return &bell_; }
  const std::vector<int>& cpus() const { return cpus_; }

 private:
  void serve();
  bool has(const DeviceTask* task) const;  // mutex_ held
  void pin();

  const std::vector<int> cpus_;
  const std::chrono::microseconds spin_;
  Signal bell_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<DeviceTask*> tasks_;    // guarded by mutex_
  bool quit_ = false;                 // guarded by mutex_
  std::atomic<uint32_t> changes_{0};  // of tasks_ and quit_
  std::jthread thread_;
};

}  // namespace pearl
