// Loaded before everything else (LD_PRELOAD): a machine that seems to have four cores, and that has no more
// threads from the n-th on, once allow_threads(n) was called.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>

namespace {

constexpr int kCores = 4;
std::atomic<int> left{1 << 30};

}  // namespace

extern "C" {

void allow_threads(int count) { left = count; }

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*),
                   void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (left.fetch_sub(1) <= 0) return EAGAIN;
  return create(thread, attributes, body, argument);
}

int sched_getaffinity(pid_t, size_t size, cpu_set_t* set) noexcept {
  CPU_ZERO_S(size, set);
  for (int cpu = 0; cpu < kCores; ++cpu) CPU_SET_S(cpu, size, set);
  return 0;
}

int pthread_setaffinity_np(pthread_t, size_t, const cpu_set_t*) noexcept { return 0; }
}
