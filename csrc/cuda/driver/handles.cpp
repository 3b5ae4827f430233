#include "cuda/driver/handles.h"

namespace pearl {

Context::Context(std::shared_ptr<Driver> driver, int ordinal)
    : driver_(std::move(driver)), ordinal_(ordinal) {
  driver_->device(ordinal);  // says it in words if there is none
  driver_->check(driver_->api().cuDeviceGet(&device_, ordinal), "cuDeviceGet", place());
  driver_->check(driver_->api().cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain",
                 place());
}

Context::~Context() { driver_->api().cuDevicePrimaryCtxRelease(device_); }

void Context::make_current() const {
  driver_->check(driver_->api().cuCtxSetCurrent(context_), "cuCtxSetCurrent", place());
}

CurrentContext::CurrentContext(const Context& context) : context_(context) {
  const Driver& driver = context.driver();
  driver.check(driver.api().cuCtxPushCurrent(context.get()), "cuCtxPushCurrent", context.place());
}

CurrentContext::~CurrentContext() {
  CUcontext popped = nullptr;
  context_.driver().api().cuCtxPopCurrent(&popped);
}

CudaStream::CudaStream(std::shared_ptr<Context> context, int priority)
    : Owned(std::move(context), "cuStreamCreateWithPriority", [&](const DriverApi& api, CUstream* stream) {
        return api.cuStreamCreateWithPriority(stream, CU_STREAM_NON_BLOCKING, priority);
      }) {}

CudaEvent::CudaEvent(std::shared_ptr<Context> context, unsigned flags)
    : Owned(std::move(context), "cuEventCreate",
            [&](const DriverApi& api, CUevent* event) { return api.cuEventCreate(event, flags); }) {}

CudaGraph::CudaGraph(std::shared_ptr<Context> context)
    : Owned(std::move(context), "cuGraphCreate",
            [](const DriverApi& api, CUgraph* graph) { return api.cuGraphCreate(graph, 0); }) {}

// Without the flag all kernels have the priority of the stream that the graph is launched on, the target's.
CudaGraphExec::CudaGraphExec(std::shared_ptr<Context> context, const CudaGraph& graph)
    : Owned(std::move(context), "cuGraphInstantiateWithFlags", [&](const DriverApi& api, CUgraphExec* exec) {
        return api.cuGraphInstantiateWithFlags(exec, graph.get(),
                                               CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY);
      }) {}

}  // namespace pearl
