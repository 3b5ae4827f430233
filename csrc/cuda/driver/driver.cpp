#include "cuda/driver/driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/checks.h"

namespace pearl {
namespace {

constexpr int kOldestVersion = 12000;
constexpr unsigned long long kLegacyStream = 1;  // CU_GET_PROC_ADDRESS_LEGACY_STREAM
constexpr const char* kWayOut = "pass device='cpu', or ";

// After these a context refuses everything (cuda.h: "leaves the process in an inconsistent state").
constexpr std::array<CUresult, 15> kStickyCodes = {
    214,  // uncorrectable ECC error
    220,  // uncorrectable NVLink error
    226,  // a contained error: this process is to be restarted
    CUDA_ERROR_ILLEGAL_ADDRESS,
    702,  // launch timeout
    709,  // context destroyed
    710,  // assert in a kernel
    714,  // hardware stack error
    715,  // illegal instruction
    716,  // misaligned address
    717,  // invalid address space
    718,  // invalid program counter
    CUDA_ERROR_LAUNCH_FAILED,
    721,  // tensor memory leak
    911,  // an external device failed
};

using GetProcAddress = CUresult (*)(const char* symbol, void** call, int version, unsigned long long flags,
                                    int* found);

[[noreturn]] void missing(const std::string& what) { throw Failure(FailureKind::kResource, what); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

[[noreturn]] void too_old(int version) {
  missing("the NVIDIA driver here runs CUDA " + version_text(version) + "; " + version_text(kOldestVersion) +
          " or newer is needed: " + kWayOut + "update the driver");
}

void* open_library(const std::string& library) {
  // Never unloaded: the driver has threads of its own, and torch uses it too.
  void* const opened = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (opened != nullptr) return opened;
  const char* said = dlerror();  // begins with the library's name
  missing(std::string("no NVIDIA driver here (") + (said == nullptr ? library : said) + "): " + kWayOut +
          "install the NVIDIA driver");
}

template <typename Call>
Call symbol(void* library, const char* name) {
  return reinterpret_cast<Call>(dlsym(library, name));
}

// Every library since CUDA 2.2 has this one by name -> 0 if it has not.
int version_of(void* library) {
  const auto get_version = symbol<CUresult (*)(int*)>(library, "cuDriverGetVersion");
  int version = 0;
  if (get_version == nullptr || get_version(&version) != CUDA_SUCCESS) return 0;
  return version;
}

template <typename Call>
void resolve(GetProcAddress get, const char* name, int version, Call* call, std::string* lacking) {
  void* found = nullptr;
  if (get(name, &found, version, kLegacyStream, nullptr) != CUDA_SUCCESS || found == nullptr) {
    *lacking += (lacking->empty() ? "" : ", ") + std::string(name) + " of version " + std::to_string(version);
    return;
  }
  *call = reinterpret_cast<Call>(found);
}

std::string message(const std::string& call, CUresult code, const std::string& name, const std::string& text,
                    const std::string& place, bool sticky) {
  return call + ": " + name + " (" + std::to_string(code) + "), " + text +
         (place.empty() ? "" : ", " + place) + (sticky ? "; its context is lost: start a new process" : "");
}

bool is_sticky_code(CUresult code) {
  return std::find(kStickyCodes.begin(), kStickyCodes.end(), code) != kStickyCodes.end();
}

}  // namespace

CudaError::CudaError(std::string call, CUresult code, std::string name, std::string text, std::string place)
    : Failure(code == CUDA_ERROR_OUT_OF_MEMORY ? FailureKind::kResource : FailureKind::kDevice,
              message(call, code, name, text, place, is_sticky_code(code))),
      call(std::move(call)),
      name(std::move(name)),
      text(std::move(text)),
      place(std::move(place)),
      code(code) {
  device =
      std::make_shared<DeviceReport>(DeviceReport{this->call, code, this->name, this->text, this->place});
}

bool CudaError::is_sticky() const { return is_sticky_code(code); }

Driver::Driver(const std::string& library) : library_(open_library(library), &dlclose) {
  version_ = version_of(library_.get());
  if (version_ == 0) missing(library + " is not the NVIDIA driver: it does not report its version");
  if (version_ < kOldestVersion) too_old(version_);
  const auto get = symbol<GetProcAddress>(library_.get(), "cuGetProcAddress_v2");
  if (get == nullptr) missing(library + " (CUDA " + version_text(version_) + ") has no cuGetProcAddress_v2");
  std::string lacking;
#define PEARL_RESOLVE(name, version, parameters) resolve(get, #name, version, &api_.name, &lacking);
  PEARL_CUDA_CALLS(PEARL_RESOLVE)
#undef PEARL_RESOLVE
  if (!lacking.empty()) {
    missing("the NVIDIA driver here (" + library + ", CUDA " + version_text(version_) + ") lacks " + lacking +
            ": " + kWayOut + "update the driver");
  }
  const CUresult started = api_.cuInit(0);
  if (started != CUDA_ERROR_NO_DEVICE) {
    check(started, "cuInit", "while the NVIDIA driver was started");
    check(api_.cuDeviceGetCount(&num_devices_), "cuDeviceGetCount", "");
  }
  if (num_devices_ == 0) {
    missing("the NVIDIA driver here (CUDA " + version_text(version_) + ") shows no GPU: " + kWayOut +
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
}

Driver::Driver(const DriverApi& api)
    : library_(nullptr, &dlclose), api_(api), version_(kOldestVersion), num_devices_(1) {}

DeviceInfo Driver::device(int ordinal) const {
  if (ordinal < 0 || ordinal >= num_devices_) {
    refuse("device " + std::to_string(ordinal) + " does not exist; this machine has devices 0 to " +
           std::to_string(num_devices_ - 1));
  }
  const std::string place = "of device " + std::to_string(ordinal);
  CUdevice device = 0;
  check(api_.cuDeviceGet(&device, ordinal), "cuDeviceGet", place);
  std::array<char, 256> name{};
  check(api_.cuDeviceGetName(name.data(), static_cast<int>(name.size()) - 1, device), "cuDeviceGetName",
        place);
  DeviceInfo info;
  info.name = name.data();
  const auto attribute = [&](int which, int* value) {
    check(api_.cuDeviceGetAttribute(value, which, device), "cuDeviceGetAttribute", place);
  };
  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &info.compute_major);
  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &info.compute_minor);
  return info;
}

void Driver::check(CUresult code, const char* call, const std::string& place) const {
  if (code == CUDA_SUCCESS) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (api_.cuGetErrorName(code, &name) != CUDA_SUCCESS || name == nullptr) name = "an error without a name";
  if (api_.cuGetErrorString(code, &text) != CUDA_SUCCESS || text == nullptr)
    text = "which has no description";
  throw CudaError(call, code, name, text, place);
}

}  // namespace pearl
