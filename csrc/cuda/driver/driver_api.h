// The part of the CUDA driver's interface that we call, declared here: no CUDA header is needed to build.
// Versions are those of the entry points that cuGetProcAddress is asked for, whatever a cuda.h would rename.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pearl {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphNode = struct CUgraphNode_st*;
using CUgraphExec = struct CUgraphExec_st*;

constexpr CUresult CUDA_SUCCESS = 0;
constexpr CUresult CUDA_ERROR_INVALID_VALUE = 1;
constexpr CUresult CUDA_ERROR_OUT_OF_MEMORY = 2;
constexpr CUresult CUDA_ERROR_DEINITIALIZED = 4;
constexpr CUresult CUDA_ERROR_NO_DEVICE = 100;
constexpr CUresult CUDA_ERROR_INVALID_HANDLE = 400;
constexpr CUresult CUDA_ERROR_NOT_READY = 600;
constexpr CUresult CUDA_ERROR_ILLEGAL_ADDRESS = 700;
constexpr CUresult CUDA_ERROR_LAUNCH_FAILED = 719;
constexpr CUresult CUDA_ERROR_NOT_SUPPORTED = 801;

constexpr int CU_STREAM_CAPTURE_MODE_RELAXED = 2;
constexpr unsigned CU_MEMORYTYPE_UNIFIED = 4;  // an address tells where it is
constexpr unsigned CU_STREAM_NON_BLOCKING = 1;
constexpr unsigned CU_EVENT_DEFAULT = 0;
constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
// Kernel nodes have the priority of the stream that they were captured on.
constexpr unsigned long long CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY = 8;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75;
constexpr int CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76;

// A copy of depth * height rows of width bytes; ours have one.
struct CUDA_MEMCPY3D {
  size_t srcXInBytes, srcY, srcZ, srcLOD;
  unsigned srcMemoryType;
  const void* srcHost;
  CUdeviceptr srcDevice;
  void* srcArray;
  void* reserved0;
  size_t srcPitch, srcHeight;
  size_t dstXInBytes, dstY, dstZ, dstLOD;
  unsigned dstMemoryType;
  void* dstHost;
  CUdeviceptr dstDevice;
  void* dstArray;
  void* reserved1;
  size_t dstPitch, dstHeight;
  size_t WidthInBytes, Height, Depth;
};

// clang-format off
// X(name, version of the entry point, parameters)
#define PEARL_CUDA_CALLS(X)                                                                            \
  X(cuInit, 2000, (unsigned flags))                                                                    \
  X(cuDriverGetVersion, 2020, (int* version))                                                          \
  X(cuGetErrorName, 6000, (CUresult error, const char** name))                                         \
  X(cuGetErrorString, 6000, (CUresult error, const char** text))                                       \
  X(cuDeviceGetCount, 2000, (int* count))                                                              \
  X(cuDeviceGet, 2000, (CUdevice* device, int ordinal))                                                \
  X(cuDeviceGetName, 2000, (char* name, int length, CUdevice device))                                  \
  X(cuDeviceGetAttribute, 2000, (int* value, int attribute, CUdevice device))                          \
  X(cuDevicePrimaryCtxRetain, 7000, (CUcontext* context, CUdevice device))                             \
  X(cuDevicePrimaryCtxRelease, 11000, (CUdevice device))                                               \
  X(cuCtxSetCurrent, 4000, (CUcontext context))                                                        \
  X(cuCtxPushCurrent, 4000, (CUcontext context))                                                       \
  X(cuCtxPopCurrent, 4000, (CUcontext* context))                                                       \
  X(cuThreadExchangeStreamCaptureMode, 10010, (int* mode))                                             \
  X(cuMemGetInfo, 3020, (size_t* free, size_t* total))                                                 \
  X(cuMemcpyAsync, 4000, (CUdeviceptr to, CUdeviceptr from, size_t num_bytes, CUstream stream))        \
  X(cuStreamCreateWithPriority, 5050, (CUstream* stream, unsigned flags, int priority))                \
  X(cuStreamDestroy, 4000, (CUstream stream))                                                          \
  X(cuStreamWaitEvent, 3020, (CUstream stream, CUevent event, unsigned flags))                         \
  X(cuStreamQuery, 2000, (CUstream stream))                                                            \
  X(cuStreamSynchronize, 2000, (CUstream stream))                                                      \
  X(cuEventCreate, 2000, (CUevent* event, unsigned flags))                                             \
  X(cuEventDestroy, 4000, (CUevent event))                                                             \
  X(cuEventRecord, 2000, (CUevent event, CUstream stream))                                             \
  X(cuEventQuery, 2000, (CUevent event))                                                               \
  X(cuEventElapsedTime, 2000, (float* milliseconds, CUevent begin, CUevent end))                       \
  X(cuGraphCreate, 10000, (CUgraph* graph, unsigned flags))                                            \
  X(cuGraphDestroy, 10000, (CUgraph graph))                                                            \
  X(cuGraphAddChildGraphNode, 10000, (CUgraphNode* node, CUgraph graph, const CUgraphNode* after,      \
                                      size_t num_after, CUgraph child))                                \
  X(cuGraphAddMemcpyNode, 10000, (CUgraphNode* node, CUgraph graph, const CUgraphNode* after,           \
                                  size_t num_after, const CUDA_MEMCPY3D* copy, CUcontext context))       \
  X(cuGraphAddEmptyNode, 10000, (CUgraphNode* node, CUgraph graph, const CUgraphNode* after,           \
                                 size_t num_after))                                                    \
  X(cuGraphInstantiateWithFlags, 11040, (CUgraphExec* exec, CUgraph graph, unsigned long long flags))  \
  X(cuGraphExecDestroy, 10000, (CUgraphExec exec))                                                     \
  X(cuGraphUpload, 11010, (CUgraphExec exec, CUstream stream))                                         \
  X(cuGraphLaunch, 10000, (CUgraphExec exec, CUstream stream))
// clang-format on

// One pointer for each call, all set.
struct DriverApi {
#define PEARL_MEMBER(name, version, parameters) CUresult(*name) parameters = nullptr;
  PEARL_CUDA_CALLS(PEARL_MEMBER)
#undef PEARL_MEMBER
};

}  // namespace pearl
