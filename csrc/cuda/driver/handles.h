// What we own of the driver: each handle is destroyed where its owner ends.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "cuda/driver/driver.h"

namespace pearl {

// Retains the primary context of a device, which torch shares. Current on the calling thread only after
// make_current(): for threads of our own, because torch takes a thread's context for its current device.
class Context {
 public:
  Context(std::shared_ptr<Driver> driver, int ordinal);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  void make_current() const;
  CUcontext get() const { return context_; }
  const Driver& driver() const { return *driver_; }
  int ordinal() const { return ordinal_; }
  std::string place() const { return "on device " + std::to_string(ordinal_); }  // for messages

 private:
  const std::shared_ptr<Driver> driver_;
  const int ordinal_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

// A context that is current on the calling thread until the end of the scope, whatever was before.
class CurrentContext {
 public:
  explicit CurrentContext(const Context& context);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

 private:
  const Context& context_;
};

// A handle that is made and destroyed from any thread; movable. get() is the raw handle, nullptr behind a
// move.
template <typename Handle, CUresult (*DriverApi::*kDestroy)(Handle)>
class Owned {
 public:
  // A destroy says nothing that a caller could act on: after a sticky error it repeats that, and after the
  // driver was shut down (CUDA_ERROR_DEINITIALIZED, at the end of a process) there is nothing left to
  // destroy.
  ~Owned() {
    if (handle_ == nullptr) return;
    const DriverApi& api = context_->driver().api();
    const bool pushed = api.cuCtxPushCurrent(context_->get()) == CUDA_SUCCESS;
    (api.*kDestroy)(handle_);
    CUcontext popped = nullptr;
    if (pushed) api.cuCtxPopCurrent(&popped);
  }
  Owned(Owned&& other) noexcept
      : context_(std::move(other.context_)), handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  Handle get() const { return handle_; }
  const std::shared_ptr<Context>& context() const { return context_; }

 protected:
  // make: (api, where to put the handle) -> what `call` returned.
  template <typename Make>
  Owned(std::shared_ptr<Context> context, const char* call, const Make& make) : context_(std::move(context)) {
    const CurrentContext current(*context_);
    context_->driver().check(make(context_->driver().api(), &handle_), call, context_->place());
  }

 private:
  std::shared_ptr<Context> context_;
  Handle handle_ = nullptr;
};

// Waits for no other stream, the default one included.
class CudaStream : public Owned<CUstream, &DriverApi::cuStreamDestroy> {
 public:
  // priority: of its kernels; the lower goes first. The driver takes the nearest that the device has.
  CudaStream(std::shared_ptr<Context> context, int priority);
};

class CudaEvent : public Owned<CUevent, &DriverApi::cuEventDestroy> {
 public:
  CudaEvent(std::shared_ptr<Context> context, unsigned flags);
};

class CudaGraph : public Owned<CUgraph, &DriverApi::cuGraphDestroy> {
 public:
  explicit CudaGraph(std::shared_ptr<Context> context);
};

class CudaGraphExec : public Owned<CUgraphExec, &DriverApi::cuGraphExecDestroy> {
 public:
  CudaGraphExec(std::shared_ptr<Context> context, const CudaGraph& graph);
};

}  // namespace pearl
