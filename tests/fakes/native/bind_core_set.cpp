// Core sets under watch: which worker runs which item, and threads that lose their cores when a test says so.
#include <dirent.h>
#include <errno.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/event.h"
#include "cpu/machine/core_set.h"
#include "python/arguments.h"
#include "python/gil.h"

namespace py = pybind11;

namespace pearl {
namespace {

constexpr int64_t kPatienceNs = 60'000'000'000;

using Runs = std::vector<std::vector<std::pair<int, int>>>;  // of each phase: (item, worker), in their order

// Notes each item, and that all of the phase before are done when one begins.
class WatchedWork final : public Work {
 public:
  // is_held: in each phase the first item of worker 0 waits until another worker has one, and that one's
  // first item until all others of the phase are done; or until patience ends.
  WatchedWork(std::vector<int> counts, bool is_held) : counts_(std::move(counts)), is_held_(is_held) {
    runs.resize(counts_.size());
  }

  int begin(int phase) override {
    is_in_order = is_in_order && phase == begun_ && (phase == 0 || done_ == counts_[phase - 1]);
    begun_ = phase + 1;
    done_ = 0;
    helper_ = -1;
    return phase < static_cast<int>(counts_.size()) ? counts_[phase] : -1;
  }

  void run(int phase, int item, int worker) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_in_order = is_in_order && phase == begun_ - 1;
      runs[phase].emplace_back(item, worker);
    }
    int none = -1;
    if (is_held_ && worker == 0) {
      wait([&] { return helper_ >= 0; });
    } else if (is_held_ && helper_.compare_exchange_strong(none, worker)) {
      wait([&] { return done_ == counts_[phase] - 1; });
    }
    done_.fetch_add(1);
  }

  Runs runs;
  bool is_in_order = true;

 private:
  template <class Condition>
  static void wait(const Condition& condition) {
    const int64_t begin = now_ns();
    while (!condition() && now_ns() - begin < kPatienceNs) usleep(50);
  }

  const std::vector<int> counts_;
  const bool is_held_;
  std::mutex mutex_;
  int begun_ = 0;
  std::atomic<int> done_{0}, helper_{-1};
};

Runs run_items(CoreSet& core_set, std::vector<int> counts, bool is_held) {
  WatchedWork work(std::move(counts), is_held);
  {
    const WithoutGil released;
    core_set.run(work);
  }
  if (!work.is_in_order) refuse("an item began before all of the phase before were done");
  return work.runs;
}

// What the handler of a signal reads: there is no other way to it.
std::atomic<bool> is_stalling{false};
std::atomic<int> num_stalled{0};

void stall(int) {
  const int kept = errno;
  num_stalled.fetch_add(1);
  while (is_stalling) {
    const timespec moment{0, 200'000};
    nanosleep(&moment, nullptr);
  }
  num_stalled.fetch_sub(1);
  errno = kept;
}

// The threads of this process that have that name.
std::vector<pid_t> threads_named(const std::string& name) {
  std::vector<pid_t> found;
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) refuse("/proc/self/task cannot be read");
  while (const dirent* entry = readdir(tasks)) {
    std::ifstream file(std::string("/proc/self/task/") + entry->d_name + "/comm");
    std::string own;
    if (std::getline(file, own) && own == name) found.push_back(atoi(entry->d_name));
  }
  closedir(tasks);
  return found;
}

// Threads of a name stand still, wherever each is, as if another process had their cores -> how many.
int stall_threads(const std::string& name) {
  struct sigaction action = {};
  action.sa_handler = stall;
  if (is_stalling.exchange(true)) refuse("threads are stalled already");
  sigaction(SIGRTMIN + 5, &action, nullptr);
  int sent = 0;
  for (pid_t thread : threads_named(name)) {
    sent += syscall(SYS_tgkill, getpid(), thread, SIGRTMIN + 5) == 0;
  }
  const int64_t begin = now_ns();
  while (num_stalled < sent && now_ns() - begin < kPatienceNs) usleep(50);
  return num_stalled;
}

void resume_threads() {
  is_stalling = false;
  while (num_stalled > 0) usleep(50);
}

}  // namespace

void bind_core_set(py::module_& m) {
  m.def("run_items", &run_items, py::arg("core_set"), py::arg("counts"), py::arg("is_held") = false,
        "Phases of so many items -> of each phase [(item, worker)], in their order. is_held: the caller's "
        "first\n"
        "item waits for a helper to have one, and that one's for all others of the phase to be done.");
  m.def("stall_threads", &stall_threads, py::arg("name"), py::call_guard<WithoutGil>(),
        "Threads of this process with that name stand still until resume_threads() -> how many");
  m.def("resume_threads", &resume_threads, py::call_guard<WithoutGil>());
}

}  // namespace pearl
