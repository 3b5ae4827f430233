// The fake driver's world: handles, contexts, faults and violations, behind one lock that only callers take.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda/driver/driver_api.h"

namespace fake {

using pearl::CUresult;

constexpr CUresult kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kDeinitialized = 4,
                   kNoDevice = 100, kInvalidDevice = 101, kInvalidContext = 201, kInvalidHandle = 400,
                   kNotReady = 600, kIllegalAddress = 700, kNotSupported = 801, kCaptureUnsupported = 900;

const char* error_name(CUresult code);  // null: no such code
const char* error_text(CUresult code);
bool is_sticky(CUresult code);

enum class Kind { kContext, kStream, kEvent, kGraph, kNode, kExec };
const char* kind_name(Kind kind);

// What a handle stands for. Never freed before a reset, so that worker threads need no count of owners.
struct Object {
  explicit Object(Kind kind) : kind(kind) {}
  virtual ~Object() = default;
  const Kind kind;
  bool is_alive = true;
  bool is_tests_own = false;  // made by fake_*: torch's in real life, and no leak of ours
  void* handle = nullptr;
};

struct Context : Object {
  explicit Context(int device) : Object(Kind::kContext), device(device) {}
  // From a kernel or an injected fault; the first one stays.
  void raise(CUresult code) {
    CUresult none = 0;
    error.compare_exchange_strong(none, code, std::memory_order_relaxed);
  }
  const int device;
  std::atomic<CUresult> error{0};
  bool is_error_told = false;
  int num_retained = 0;
};

// Pseudo-random numbers of one thread (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
  // Nothing, a yield, up to max_us, or rarely eight times that.
  void delay(int max_us);

 private:
  uint64_t state_;
};

struct Refusal {
  CUresult code;
};

struct Record;
struct Allocation;

class World {
 public:
  static World& get();

  // Set by fake_reset; read by calls, under the lock.
  std::mutex lock;
  uint64_t seed = 0;
  int max_delay_us = 0;
  int version = 13000;
  size_t memory_bytes = size_t{1} << 34;
  bool is_initialized = false;
  bool was_initialized = false;  // this world or one before
  int num_captures = 0;
  int num_false_idle = 0;  // answers of cuStreamQuery to come that say idle, whatever runs
  std::set<std::string> hidden;
  std::vector<Context*> contexts;  // by device
  std::map<uintptr_t, std::unique_ptr<Allocation>> allocations;
  std::vector<std::unique_ptr<Allocation>> freed;
  std::vector<std::unique_ptr<Record>> records;

  void clear(uint64_t new_seed, int new_max_delay_us, int num_devices);
  void* add(std::unique_ptr<Object> object, bool is_tests_own);  // -> its handle
  Object* find(void* handle) const;                              // null: of another world, or none
  bool is_of_another_world(void* handle) const;
  std::vector<Object*> objects(Kind kind) const;
  Record* new_record(Context* context);
  std::vector<std::string> live_handles() const;

  // Faults. take_* -> the code, or 0.
  void inject(const std::string& call, int nth, CUresult code);
  CUresult take_fault(const std::string& call);
  CUresult take_kernel_fault();  // by workers, without the lock
  size_t num_calls(const std::string& call) const;

  // From any thread; takes a lock of its own.
  void violation(const std::string& text);
  std::vector<std::string> violations();

 private:
  struct KernelFault {
    std::atomic<int> countdown{0};
    std::atomic<CUresult> code{0};
  };
  std::vector<std::unique_ptr<Object>> objects_;
  uintptr_t generation_ = 0;
  std::map<std::string, size_t> num_calls_;
  std::map<std::string, std::map<size_t, CUresult>> faults_;
  std::array<KernelFault, 16> kernel_faults_;
  std::atomic<size_t> num_kernels_{0};
  std::mutex violations_lock_;
  std::vector<std::string> violations_;
};

// One call of the driver: holds the lock, looks handles up, and refuses what is not legal.
class Call {
 public:
  explicit Call(const char* name) : name_(name), world(World::get()), lock(world.lock) {}

  template <typename T>
  T& object(void* handle, Kind kind) {
    return static_cast<T&>(any(handle, kind));
  }
  // The context must be current and without an error. is_work: something is put on a stream.
  void use(Context& context, bool is_work);
  Context& current();         // whichever context is current
  void keep(CUresult fault);  // a fault that CUDA would return from now on is the current context's
  [[noreturn]] void not_initialized();
  void no_capture();  // for calls that a capture in the global mode forbids
  void violation(const std::string& text) { world.violation(std::string(name_) + ": " + text); }
  [[noreturn]] void refuse(CUresult code, const std::string& text) {
    violation(text);
    throw Refusal{code};
  }

 private:
  Object& any(void* handle, Kind kind);
  const char* const name_;

 public:
  World& world;
  std::unique_lock<std::mutex> lock;
};

// Of the calling thread, how it gets on with captures: 0 in the global mode, as CUDA has it at first.
constexpr int kRelaxed = pearl::CU_STREAM_CAPTURE_MODE_RELAXED;
int& capture_mode();

// Contexts of the calling thread, the current one last.
std::vector<void*>& context_stack();

template <typename Body>
CUresult call_before_init(const char* name, const Body& body) {
  Call call(name);
  try {
    if (const CUresult fault = call.world.take_fault(name); fault != 0) {
      call.keep(fault);
      return fault;
    }
    body(call);
  } catch (const Refusal& refusal) {
    return refusal.code;
  }
  return 0;
}

template <typename Body>
CUresult call(const char* name, const Body& body) {
  return call_before_init(name, [&](Call& c) {
    if (!c.world.is_initialized) c.not_initialized();
    body(c);
  });
}

}  // namespace fake

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))
