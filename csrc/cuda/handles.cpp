#include "cuda/handles.h"

namespace pearl {
namespace {

std::string on_device(const Context& context) { return "on device " + std::to_string(context.ordinal()); }

// A destroy says nothing that anyone could act on: after a sticky error it repeats that, and after the driver
// was shut down (CUDA_ERROR_DEINITIALIZED, at the end of a process) there is nothing left to destroy.
template <typename Destroy>
void destroy_quietly(const Context& context, const Destroy& destroy) noexcept {
  const DriverApi& api = context.driver().api();
  const bool pushed = api.cuCtxPushCurrent(context.get()) == CUDA_SUCCESS;
  destroy(api);
  CUcontext popped = nullptr;
  if (pushed) api.cuCtxPopCurrent(&popped);
}

}  // namespace

Context::Context(std::shared_ptr<Driver> driver, int ordinal)
    : driver_(std::move(driver)), ordinal_(ordinal) {
  driver_->device(ordinal);  // says it in words if there is none
  driver_->check(driver_->api().cuDeviceGet(&device_, ordinal), "cuDeviceGet", on_device(*this));
  driver_->check(driver_->api().cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain",
                 on_device(*this));
}

Context::~Context() { driver_->api().cuDevicePrimaryCtxRelease(device_); }

void Context::make_current() const {
  driver_->check(driver_->api().cuCtxSetCurrent(context_), "cuCtxSetCurrent", on_device(*this));
}

CurrentContext::CurrentContext(const Context& context) : context_(context) {
  const Driver& driver = context.driver();
  driver.check(driver.api().cuCtxPushCurrent(context.get()), "cuCtxPushCurrent", on_device(context));
}

CurrentContext::~CurrentContext() {
  CUcontext popped = nullptr;
  context_.driver().api().cuCtxPopCurrent(&popped);
}

CudaEvent::CudaEvent(std::shared_ptr<Context> context, unsigned flags) : context_(std::move(context)) {
  const CurrentContext current(*context_);
  const Driver& driver = context_->driver();
  driver.check(driver.api().cuEventCreate(&event_, flags), "cuEventCreate", on_device(*context_));
}

CudaEvent::~CudaEvent() {
  if (event_ == nullptr) return;
  destroy_quietly(*context_, [this](const DriverApi& api) { api.cuEventDestroy(event_); });
}

CudaEvent::CudaEvent(CudaEvent&& other) noexcept
    : context_(std::move(other.context_)), event_(std::exchange(other.event_, nullptr)) {}

CudaEvent& CudaEvent::operator=(CudaEvent&& other) noexcept {
  std::swap(context_, other.context_);
  std::swap(event_, other.event_);
  return *this;
}

CudaGraph::CudaGraph(std::shared_ptr<Context> context) : context_(std::move(context)) {
  const CurrentContext current(*context_);
  const Driver& driver = context_->driver();
  driver.check(driver.api().cuGraphCreate(&graph_, 0), "cuGraphCreate", on_device(*context_));
}

CudaGraph::~CudaGraph() {
  if (graph_ == nullptr) return;
  destroy_quietly(*context_, [this](const DriverApi& api) { api.cuGraphDestroy(graph_); });
}

CudaGraph::CudaGraph(CudaGraph&& other) noexcept
    : context_(std::move(other.context_)), graph_(std::exchange(other.graph_, nullptr)) {}

CudaGraph& CudaGraph::operator=(CudaGraph&& other) noexcept {
  std::swap(context_, other.context_);
  std::swap(graph_, other.graph_);
  return *this;
}

CudaGraphExec::CudaGraphExec(std::shared_ptr<Context> context, const CudaGraph& graph)
    : context_(std::move(context)) {
  const CurrentContext current(*context_);
  const Driver& driver = context_->driver();
  // Without it all kernels have the priority of the stream that the graph is launched on, the target's.
  driver.check(driver.api().cuGraphInstantiateWithFlags(&exec_, graph.get(),
                                                        CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY),
               "cuGraphInstantiateWithFlags", on_device(*context_));
}

CudaGraphExec::~CudaGraphExec() {
  if (exec_ == nullptr) return;
  destroy_quietly(*context_, [this](const DriverApi& api) { api.cuGraphExecDestroy(exec_); });
}

CudaGraphExec::CudaGraphExec(CudaGraphExec&& other) noexcept
    : context_(std::move(other.context_)), exec_(std::exchange(other.exec_, nullptr)) {}

CudaGraphExec& CudaGraphExec::operator=(CudaGraphExec&& other) noexcept {
  std::swap(context_, other.context_);
  std::swap(exec_, other.exec_);
  return *this;
}

}  // namespace pearl
