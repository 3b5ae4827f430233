// The calls of the fake driver that are about itself: its symbols, errors, devices and contexts; and its
// reports.
#include <cstring>
#include <utility>

#include "fake_cuda.h"
#include "memory.h"
#include "streams.h"

using namespace fake;
using pearl::CUcontext;
using pearl::CUdevice;

#define FAKE_DECLARE(name, version, parameters) extern "C" CUresult name parameters;
namespace fake_calls {
using namespace pearl;
PEARL_CUDA_CALLS(FAKE_DECLARE)
}  // namespace fake_calls
#undef FAKE_DECLARE

namespace {

struct Symbol {
  const char* name;
  int version;
  void* call;
};

#define FAKE_SYMBOL(name, version, parameters) {#name, version, reinterpret_cast<void*>(&fake_calls::name)},
const Symbol kSymbols[] = {PEARL_CUDA_CALLS(FAKE_SYMBOL)};
#undef FAKE_SYMBOL

size_t put_lines(const std::vector<std::string>& lines, char* buffer, size_t size) {
  std::string all;
  for (const std::string& line : lines) all += (all.empty() ? "" : "\n") + line;
  if (size > 0) {
    const size_t num_bytes = std::min(all.size(), size - 1);
    std::memcpy(buffer, all.data(), num_bytes);
    buffer[num_bytes] = 0;
  }
  return all.size() + 1;
}

Context& device_context(Call& c, CUdevice device) {
  if (device < 0 || device >= static_cast<int>(c.world.contexts.size())) {
    c.refuse(kInvalidDevice, "device " + std::to_string(device) + " does not exist");
  }
  return *c.world.contexts[device];
}

}  // namespace

FAKE_EXPORT void fake_reset(uint64_t seed, int max_delay_us, int num_devices) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  world.clear(seed, max_delay_us, num_devices);
}

FAKE_EXPORT void fake_set_version(int version) { World::get().version = version; }
FAKE_EXPORT void fake_hide(const char* call) { World::get().hidden.insert(call); }
FAKE_EXPORT void fake_set_memory(size_t num_bytes) { World::get().memory_bytes = num_bytes; }

FAKE_EXPORT void fake_inject(const char* call, int nth, int code) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  world.inject(call, nth, code);
}

FAKE_EXPORT void fake_say_idle(int times) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  world.num_false_idle = times;
}

FAKE_EXPORT size_t fake_violations(char* buffer, size_t size) {
  return put_lines(World::get().violations(), buffer, size);
}

FAKE_EXPORT size_t fake_live_handles(char* buffer, size_t size) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  return put_lines(world.live_handles(), buffer, size);
}

FAKE_EXPORT size_t fake_num_calls(const char* call) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  return world.num_calls(call);
}

FAKE_EXPORT CUresult cuGetProcAddress_v2(const char* name, void** found, int version,
                                         unsigned long long flags, int* result) {
  World& world = World::get();
  const std::lock_guard<std::mutex> lock(world.lock);
  *found = nullptr;  // what is missing or too new is null and no error, as in CUDA
  if (flags != 1) world.violation("cuGetProcAddress: flags are not CU_GET_PROC_ADDRESS_LEGACY_STREAM");
  if (version > world.version) return kInvalidValue;
  int status = 1;  // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
  for (const Symbol& symbol : kSymbols) {
    if (std::strcmp(symbol.name, name) != 0 || world.hidden.count(name) != 0) continue;
    status = version < symbol.version ? 2 : 0;  // 2: CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
    if (status == 0) *found = symbol.call;
  }
  if (result != nullptr) *result = status;
  return 0;
}

FAKE_EXPORT CUresult cuInit(unsigned flags) {
  return call_before_init("cuInit", [&](Call& c) {
    if (flags != 0) c.refuse(kInvalidValue, "flags are not 0");
    if (c.world.contexts.empty()) throw Refusal{kNoDevice};
    c.world.is_initialized = c.world.was_initialized = true;
  });
}

FAKE_EXPORT CUresult cuDriverGetVersion(int* version) {
  return call_before_init("cuDriverGetVersion", [&](Call& c) { *version = c.world.version; });
}

FAKE_EXPORT CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error_name(error);
  return *name == nullptr ? kInvalidValue : 0;
}

FAKE_EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error_text(error);
  return *text == nullptr ? kInvalidValue : 0;
}

FAKE_EXPORT CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
  return call("cuThreadExchangeStreamCaptureMode", [&](Call& c) {
    if (*mode < 0 || *mode > kRelaxed) c.refuse(kInvalidValue, "no mode of a capture");
    std::swap(*mode, capture_mode());
  });
}

FAKE_EXPORT CUresult cuDeviceGetCount(int* count) {
  return call("cuDeviceGetCount", [&](Call& c) { *count = static_cast<int>(c.world.contexts.size()); });
}

FAKE_EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call("cuDeviceGet", [&](Call& c) { *device = device_context(c, ordinal).device; });
}

FAKE_EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  return call("cuDeviceGetName", [&](Call& c) {
    const std::string text = "Fake GPU " + std::to_string(device_context(c, device).device);
    if (length <= static_cast<int>(text.size())) c.refuse(kInvalidValue, "too short for the name");
    std::strcpy(name, text.c_str());
  });
}

FAKE_EXPORT CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  return call("cuDeviceGetAttribute", [&](Call& c) {
    device_context(c, device);
    if (attribute == pearl::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) {
      *value = 9;
    } else if (attribute == pearl::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) {
      *value = 0;
    } else {
      c.refuse(kInvalidValue, "attribute " + std::to_string(attribute) + " is not known to the fake");
    }
  });
}

FAKE_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return call("cuDevicePrimaryCtxRetain", [&](Call& c) {
    Context& primary = device_context(c, device);
    ++primary.num_retained;
    *context = static_cast<CUcontext>(primary.handle);
  });
}

FAKE_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  return call("cuDevicePrimaryCtxRelease", [&](Call& c) {
    Context& primary = device_context(c, device);
    if (primary.num_retained == 0) c.refuse(kInvalidContext, "more often than it was retained");
    --primary.num_retained;
  });
}

FAKE_EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  return call("cuCtxSetCurrent", [&](Call& c) {
    if (context != nullptr) c.object<Context>(context, Kind::kContext);
    std::vector<void*>& stack = context_stack();
    if (!stack.empty()) stack.pop_back();
    if (context != nullptr) stack.push_back(context);
  });
}

FAKE_EXPORT CUresult cuCtxPushCurrent(CUcontext context) {
  return call("cuCtxPushCurrent", [&](Call& c) {
    c.object<Context>(context, Kind::kContext);
    context_stack().push_back(context);
  });
}

FAKE_EXPORT CUresult cuCtxPopCurrent(CUcontext* context) {
  return call("cuCtxPopCurrent", [&](Call& c) {
    std::vector<void*>& stack = context_stack();
    if (stack.empty()) c.refuse(kInvalidContext, "no context is current on this thread");
    *context = static_cast<CUcontext>(stack.back());
    stack.pop_back();
  });
}
