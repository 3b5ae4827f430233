#include "cpu/lane/cpu_device.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <string>

#include "core/failure.h"
#include "core/thread.h"
#include "cpu/machine/core_set.h"

namespace pearl {

namespace {

constexpr std::chrono::microseconds kIdleSpin{50};  // between requests

}  // namespace

CpuDevice::CpuDevice(std::vector<int> cpus, std::chrono::microseconds spin)
    : cpus_(std::move(cpus)), spin_(spin), thread_(started_thread("a lane", [this] { serve(); })) {
  try {
    pin();
  } catch (...) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      quit_ = true;
    }
    changes_.fetch_add(1, std::memory_order_release);
    bell_.raise();
    thread_.join();
    throw;
  }
}

CpuDevice::~CpuDevice() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
  }
  changes_.fetch_add(1, std::memory_order_release);
  bell_.raise();
  thread_.join();
}

void CpuDevice::pin() {
#ifdef __linux__
  pthread_setname_np(thread_.native_handle(), "pearl-lane");
  if (cpus_.empty()) return;
  const std::vector<int> allowed = affinity_cpus();
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : cpus_) {
    if (std::find(allowed.begin(), allowed.end(), cpu) == allowed.end()) {
      throw Failure(FailureKind::kResource, "core " + std::to_string(cpu) +
                                                " cannot be used by this process; choose among those of "
                                                "os.sched_getaffinity(0)");
    }
    CPU_SET(cpu, &set);
  }
  pthread_setaffinity_np(thread_.native_handle(), sizeof(set), &set);
#endif
}

void CpuDevice::submit(DeviceTask* task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(task);
  }
  changes_.fetch_add(1, std::memory_order_release);
  bell_.raise();
}

bool CpuDevice::has(const DeviceTask* task) const {
  return std::find(tasks_.begin(), tasks_.end(), task) != tasks_.end();
}

void CpuDevice::join(const DeviceTask* task) {
  std::unique_lock<std::mutex> lock(mutex_);
  ended_.wait(lock, [&] { return !has(task); });
}

void CpuDevice::serve() {
  std::vector<DeviceTask*> tasks;
  uint32_t known = 0;
  for (;;) {
    const uint32_t seen = bell_.value();  // before the look for work: what comes later rings it
    const uint32_t changes = changes_.load(std::memory_order_acquire);
    if (changes != known) {
      known = changes;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (quit_) return;
      tasks = tasks_;
    }
    bool advanced = false;
    for (size_t i = 0; i < tasks.size() && !advanced; ++i) {
      const Progress progress = tasks[i]->advance();
      advanced = progress != Progress::kBlocked;
      if (progress == Progress::kEnded) {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::erase(tasks_, tasks[i]);
        tasks = tasks_;
        ended_.notify_all();  // under the lock: the task, not the device, may be destroyed at once
      }
    }
    if (!advanced) bell_.wait(seen, tasks.empty() ? std::min(kIdleSpin, spin_) : spin_);
  }
}

}  // namespace pearl
