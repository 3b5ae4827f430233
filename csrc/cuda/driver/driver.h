// The CUDA driver, found when it is first asked for: libcuda by dlopen, its calls by cuGetProcAddress.
// Knows calls and their errors; not streams' work, lanes or rounds.
#pragma once

#include <memory>
#include <string>

#include "core/failure.h"
#include "cuda/driver/driver_api.h"

namespace pearl {

// What a call of the driver said. what() reads: "cuGraphLaunch: CUDA_ERROR_LAUNCH_FAILED (719), unspecified
// launch failure, in step score of the target lane, round 12; its context is lost: start a new process".
// A Failure of kind kDevice (kResource where memory ran out), whole also where it is handled as one.
class CudaError : public Failure {
 public:
  CudaError(std::string call, CUresult code, std::string name, std::string text, std::string place);
  const std::string call, name, text, place;
  const CUresult code;
  // Nothing that is done with this context can succeed any more (launch failed, illegal address, ...).
  bool is_sticky() const;
  bool is_out_of_memory() const { return code == CUDA_ERROR_OUT_OF_MEMORY; }
};

struct DeviceInfo {
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
};

class Driver {
 public:
  // library: "libcuda.so.1", or a path. Throws Failure(kResource) which says what is missing: the library
  // (no NVIDIA driver), a call that it lacks (driver older than 12.0), or devices.
  explicit Driver(const std::string& library);
  // One device behind these calls, and no library.
  explicit Driver(const DriverApi& api);
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  const DriverApi& api() const { return api_; }
  int version() const { return version_; }  // 13000 for 13.0
  int num_devices() const { return num_devices_; }
  DeviceInfo device(int ordinal) const;

  // Throws CudaError unless code is CUDA_SUCCESS. place: "in step score of the target lane, round 12".
  void check(CUresult code, const char* call, const std::string& place) const;

 private:
  const std::unique_ptr<void, int (*)(void*)> library_;
  DriverApi api_;
  int version_ = 0;
  int num_devices_ = 0;
};

}  // namespace pearl
