#include "world.h"

#include <chrono>
#include <thread>

#include "memory.h"
#include "streams.h"

namespace fake {
namespace {

constexpr int kIdBits = 24;
constexpr uintptr_t kMark = uintptr_t{0xfa}
                            << 48;  // no address of user space: a handle is never read through

struct ErrorText {
  CUresult code;
  const char* name;
  const char* text;
};
constexpr ErrorText kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {710, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorText* find_error(CUresult code) {
  for (const ErrorText& error : kErrors) {
    if (error.code == code) return &error;
  }
  return nullptr;
}

std::string hex(void* handle) {
  char text[32];
  snprintf(text, sizeof text, "%p", handle);
  return text;
}

}  // namespace

const char* error_name(CUresult code) {
  const ErrorText* error = find_error(code);
  return error == nullptr ? nullptr : error->name;
}

const char* error_text(CUresult code) {
  const ErrorText* error = find_error(code);
  return error == nullptr ? nullptr : error->text;
}

bool is_sticky(CUresult code) { return code == 214 || (code >= 700 && code < 720 && code != 701); }

const char* kind_name(Kind kind) {
  constexpr const char* names[] = {"context", "stream", "event", "graph", "node", "exec"};
  return names[static_cast<int>(kind)];
}

uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

void Random::delay(int max_us) {
  if (max_us <= 0) return;
  const int what = below(32);
  if (what < 8) return;
  if (what < 16) return std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::microseconds(what == 31 ? 8 * max_us : below(max_us + 1)));
}

World& World::get() {
  static World* const world = new World;  // outlives every thread
  return *world;
}

void World::clear(uint64_t new_seed, int new_max_delay_us, int num_devices) {
  for (Context* context : contexts) context->raise(kDeinitialized);
  for (auto& object : objects_) {
    if (object->kind == Kind::kStream) object.reset();  // first: their threads use all the rest
  }
  objects_.clear();
  contexts.clear();
  allocations.clear();
  freed.clear();
  records.clear();
  hidden.clear();
  num_calls_.clear();
  faults_.clear();
  for (KernelFault& fault : kernel_faults_) fault.countdown = 0;
  num_kernels_ = 0;
  {
    const std::lock_guard<std::mutex> own(violations_lock_);
    violations_.clear();
  }
  ++generation_;
  seed = new_seed;
  max_delay_us = new_max_delay_us;
  version = 13000;
  memory_bytes = size_t{1} << 34;
  is_initialized = false;
  num_captures = 0;
  num_false_idle = 0;
  for (int device = 0; device < num_devices; ++device) {
    auto context = std::make_unique<Context>(device);
    contexts.push_back(context.get());
    add(std::move(context), true);
  }
}

void* World::add(std::unique_ptr<Object> object, bool is_tests_own) {
  const uintptr_t id = objects_.size();
  object->is_tests_own = is_tests_own;
  object->handle = reinterpret_cast<void*>(kMark | (generation_ & 0xffff) << kIdBits | id);
  objects_.push_back(std::move(object));
  return objects_.back()->handle;
}

Object* World::find(void* handle) const {
  const auto bits = reinterpret_cast<uintptr_t>(handle);
  const uintptr_t id = bits & ((uintptr_t{1} << kIdBits) - 1);
  if (id >= objects_.size() || objects_[id]->handle != handle) return nullptr;
  return objects_[id].get();
}

bool World::is_of_another_world(void* handle) const {
  const auto bits = reinterpret_cast<uintptr_t>(handle);
  return bits >> 48 == kMark >> 48 && ((bits >> kIdBits) & 0xffff) != (generation_ & 0xffff);
}

std::vector<Object*> World::objects(Kind kind) const {
  std::vector<Object*> found;
  for (const auto& object : objects_) {
    if (object->kind == kind && object->is_alive) found.push_back(object.get());
  }
  return found;
}

Record* World::new_record(Context* context) {
  records.push_back(std::make_unique<Record>(context));
  return records.back().get();
}

std::vector<std::string> World::live_handles() const {
  std::vector<std::string> live;
  for (const Context* context : contexts) {
    if (context->num_retained != 0) {
      live.push_back("context of device " + std::to_string(context->device) + ", retained " +
                     std::to_string(context->num_retained) + " times");
    }
  }
  for (const auto& object : objects_) {
    if (object->is_alive && !object->is_tests_own && object->kind != Kind::kNode) {
      live.push_back(std::string(kind_name(object->kind)) + " " + hex(object->handle));
    }
  }
  return live;
}

void World::inject(const std::string& call, int nth, CUresult code) {
  if (call != "kernel") {
    faults_[call][num_calls_[call] + static_cast<size_t>(nth)] = code;
    return;
  }
  for (KernelFault& fault : kernel_faults_) {
    if (fault.countdown.load() > 0) continue;
    fault.code.store(code);
    fault.countdown.store(nth);
    return;
  }
}

CUresult World::take_fault(const std::string& call) {
  const size_t count = ++num_calls_[call];
  const auto of_call = faults_.find(call);
  if (of_call == faults_.end()) return 0;
  const auto fault = of_call->second.find(count);
  return fault == of_call->second.end() ? 0 : fault->second;
}

CUresult World::take_kernel_fault() {
  num_kernels_.fetch_add(1, std::memory_order_relaxed);
  for (KernelFault& fault : kernel_faults_) {
    if (fault.countdown.load(std::memory_order_relaxed) <= 0) continue;
    if (fault.countdown.fetch_sub(1, std::memory_order_relaxed) == 1) {
      return fault.code.load(std::memory_order_relaxed);
    }
  }
  return 0;
}

size_t World::num_calls(const std::string& call) const {
  if (call == "kernel") return num_kernels_.load(std::memory_order_relaxed);
  const auto found = num_calls_.find(call);
  return found == num_calls_.end() ? 0 : found->second;
}

void World::violation(const std::string& text) {
  const std::lock_guard<std::mutex> own(violations_lock_);
  if (violations_.size() < 1000) violations_.push_back(text);
}

std::vector<std::string> World::violations() {
  const std::lock_guard<std::mutex> own(violations_lock_);
  return violations_;
}

std::vector<void*>& context_stack() {
  thread_local std::vector<void*> stack;
  return stack;
}

Object& Call::any(void* handle, Kind kind) {
  const std::string expected = kind_name(kind);
  if (handle == nullptr) refuse(kInvalidHandle, "a null " + expected);
  if (world.is_of_another_world(handle)) throw Refusal{kDeinitialized};
  Object* const object = world.find(handle);
  if (object == nullptr) refuse(kInvalidHandle, hex(handle) + " is no " + expected);
  if (object->kind != kind) {
    refuse(kInvalidHandle, std::string("it is a ") + kind_name(object->kind) + ", not the " + expected +
                               " that is asked for");
  }
  if (!object->is_alive) refuse(kInvalidHandle, "the " + expected + " was destroyed before");
  return *object;
}

Context& Call::current() {
  const std::vector<void*>& stack = context_stack();
  void* const handle = stack.empty() ? nullptr : stack.back();
  if (handle == nullptr || world.is_of_another_world(handle)) {
    refuse(kInvalidContext, "no context is current on this thread");
  }
  return object<Context>(handle, Kind::kContext);
}

void Call::use(Context& context, bool is_work) {
  const Context& here = current();
  if (&here != &context) {
    refuse(kInvalidContext, "the context of device " + std::to_string(here.device) +
                                " is current, not that of " + "device " + std::to_string(context.device));
  }
  if (context.num_retained == 0)
    violation("the context of device " + std::to_string(context.device) + " is not retained");
  const CUresult error = context.error.load(std::memory_order_relaxed);
  if (error == 0) return;
  if (is_work && context.is_error_told) {
    violation(std::string("work after ") + error_name(error) + " was returned");
  }
  context.is_error_told = true;
  throw Refusal{error};
}

void Call::keep(CUresult fault) {
  const std::vector<void*>& stack = context_stack();
  Object* const context = stack.empty() ? nullptr : world.find(stack.back());
  if (context == nullptr || !is_sticky(fault)) return;
  static_cast<Context*>(context)->raise(fault);
  static_cast<Context*>(context)->is_error_told = true;
}

void Call::not_initialized() {
  if (world.was_initialized) throw Refusal{kDeinitialized};  // by an owner from before a reset
  refuse(kNotInitialized, "before cuInit");
}

int& capture_mode() {
  thread_local int mode = 0;
  return mode;
}

void Call::no_capture() {
  if (world.num_captures > 0 && capture_mode() != kRelaxed)
    refuse(kCaptureUnsupported, "while a capture in the global mode is under way");
}

}  // namespace fake
