// Why a request was refused or a run ended early.
#pragma once

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

namespace pearl {

enum class FailureKind {
  kRequest,     // the caller asked for what cannot be done
  kNumerics,    // NaN or infinite logits
  kResource,    // memory or cores ran out
  kExecutor,    // anything else that a forward pass threw
  kDevice,      // what a GPU or its driver reported; `device` says it in parts
  kCheckpoint,  // a model's file is not what it was
};

// What a call of a GPU's driver said: "cuGraphLaunch", 719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch
// failure", "in step score of the target lane, round 12".
struct DeviceReport {
  std::string call;
  int code = 0;
  std::string name, text, place;
};

class Failure : public std::runtime_error {
 public:
  Failure(FailureKind kind, const std::string& what) : std::runtime_error(what), kind(kind) {}
  FailureKind kind;
  std::shared_ptr<const DeviceReport> device;  // none, unless a device reported it
  std::exception_ptr raised;                   // none, unless a function of Python's raised it
};

}  // namespace pearl
