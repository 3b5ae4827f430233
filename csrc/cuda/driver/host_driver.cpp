#include "cuda/driver/host_driver.h"

#include <cstring>

#include "core/event.h"

namespace pearl {

namespace {

struct HostEvent {
  int64_t recorded_ns = 0;
};

HostEvent* host(CUevent event) { return reinterpret_cast<HostEvent*>(event); }

template <CUresult code, typename... Parameters>
void answer(CUresult (**call)(Parameters...)) {
  *call = [](Parameters...) -> CUresult { return code; };
}

CUresult error_name(CUresult code, const char** name) {
  *name = code == CUDA_ERROR_NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED" : "an error of no call on the host";
  return CUDA_SUCCESS;
}

CUresult error_text(CUresult, const char** text) {
  *text = "lanes on the host have no graphs";
  return CUDA_SUCCESS;
}

CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t num_bytes, CUstream) {
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), num_bytes);
  return CUDA_SUCCESS;
}

// Nothing is behind it: what is put on a stream of the host is done at once.
CUresult create_stream(CUstream* stream, unsigned, int) {
  *stream = reinterpret_cast<CUstream>(1);
  return CUDA_SUCCESS;
}

CUresult create_event(CUevent* event, unsigned) {
  *event = reinterpret_cast<CUevent>(new HostEvent);
  return CUDA_SUCCESS;
}

CUresult destroy_event(CUevent event) {
  delete host(event);
  return CUDA_SUCCESS;
}

CUresult record_event(CUevent event, CUstream) {
  host(event)->recorded_ns = now_ns();
  return CUDA_SUCCESS;
}

CUresult elapsed_time(float* milliseconds, CUevent begin, CUevent end) {
  *milliseconds = static_cast<float>(host(end)->recorded_ns - host(begin)->recorded_ns) * 1e-6f;
  return CUDA_SUCCESS;
}

DriverApi host_api() {
  DriverApi api;
#define PEARL_REFUSE(name, version, parameters) answer<CUDA_ERROR_NOT_SUPPORTED>(&api.name);
  PEARL_CUDA_CALLS(PEARL_REFUSE)
#undef PEARL_REFUSE
  answer<CUDA_SUCCESS>(&api.cuDeviceGet);
  answer<CUDA_SUCCESS>(&api.cuDeviceGetName);
  answer<CUDA_SUCCESS>(&api.cuDeviceGetAttribute);
  answer<CUDA_SUCCESS>(&api.cuDevicePrimaryCtxRetain);
  answer<CUDA_SUCCESS>(&api.cuDevicePrimaryCtxRelease);
  answer<CUDA_SUCCESS>(&api.cuCtxSetCurrent);
  answer<CUDA_SUCCESS>(&api.cuCtxPushCurrent);
  answer<CUDA_SUCCESS>(&api.cuCtxPopCurrent);
  answer<CUDA_SUCCESS>(&api.cuThreadExchangeStreamCaptureMode);
  answer<CUDA_SUCCESS>(&api.cuStreamDestroy);
  answer<CUDA_SUCCESS>(&api.cuStreamWaitEvent);
  answer<CUDA_SUCCESS>(&api.cuStreamQuery);
  answer<CUDA_SUCCESS>(&api.cuStreamSynchronize);
  answer<CUDA_SUCCESS>(&api.cuEventQuery);
  api.cuGetErrorName = &error_name;
  api.cuGetErrorString = &error_text;
  api.cuMemcpyAsync = &copy;
  api.cuStreamCreateWithPriority = &create_stream;
  api.cuEventCreate = &create_event;
  api.cuEventDestroy = &destroy_event;
  api.cuEventRecord = &record_event;
  api.cuEventElapsedTime = &elapsed_time;
  return api;
}

}  // namespace

std::shared_ptr<Driver> host_driver() { return std::make_shared<Driver>(host_api()); }

}  // namespace pearl
