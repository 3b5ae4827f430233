// What we own of the driver: each handle is destroyed where its owner ends.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "cuda/driver.h"

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

// Movable owners, made and destroyed from any thread: event, graph, graph exec. get() is the raw handle.
class CudaEvent {
 public:
  CudaEvent(std::shared_ptr<Context> context, unsigned flags);
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept;
  CudaEvent& operator=(CudaEvent&& other) noexcept;
  CUevent get() const { return event_; }

 private:
  std::shared_ptr<Context> context_;
  CUevent event_ = nullptr;
};

class CudaGraph {
 public:
  explicit CudaGraph(std::shared_ptr<Context> context);
  ~CudaGraph();
  CudaGraph(CudaGraph&& other) noexcept;
  CudaGraph& operator=(CudaGraph&& other) noexcept;
  CUgraph get() const { return graph_; }

 private:
  std::shared_ptr<Context> context_;
  CUgraph graph_ = nullptr;
};

class CudaGraphExec {
 public:
  CudaGraphExec(std::shared_ptr<Context> context, const CudaGraph& graph);
  ~CudaGraphExec();
  CudaGraphExec(CudaGraphExec&& other) noexcept;
  CudaGraphExec& operator=(CudaGraphExec&& other) noexcept;
  CUgraphExec get() const { return exec_; }

 private:
  std::shared_ptr<Context> context_;
  CUgraphExec exec_ = nullptr;
};

}  // namespace pearl
