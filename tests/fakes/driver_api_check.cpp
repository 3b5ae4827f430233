// Compiles only if every call and number of csrc/cuda/driver/driver_api.h is that of NVIDIA's own headers:
// the type of each call equals PFN_<name>_v<version> of cudaTypedefs.h, with the same handle in the same
// place.
#include "cuda/driver/driver_api.h"

// Before cuda.h, which renames calls by macros.
namespace pearl {
#define TAKE_TYPE(name, version, parameters) using Ours_##name = CUresult(*) parameters;
PEARL_CUDA_CALLS(TAKE_TYPE)
}  // namespace pearl

#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstddef>
#include <type_traits>

// Alike in a call: the same type; integers and enums of one size; pointers to alike; a handle and its
// namesake.
template <typename Ours, typename Theirs>
constexpr bool is_alike() {
  if constexpr (std::is_const_v<Ours> != std::is_const_v<Theirs>) {
    return false;
  } else if constexpr (std::is_const_v<Ours>) {
    return is_alike<std::remove_const_t<Ours>, std::remove_const_t<Theirs>>();
  } else if constexpr (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) {
    return is_alike<std::remove_pointer_t<Ours>, std::remove_pointer_t<Theirs>>();
  } else if constexpr (std::is_enum_v<Theirs>) {
    return std::is_same_v<Ours, int> && sizeof(Theirs) == sizeof(int);
  } else if constexpr (std::is_integral_v<Ours> && std::is_integral_v<Theirs>) {
    return sizeof(Ours) == sizeof(Theirs) && std::is_signed_v<Ours> == std::is_signed_v<Theirs>;
  }
  return std::is_same_v<Ours, Theirs>;
}

#define IS_NAMESAKE(handle)                            \
  template <>                                          \
  constexpr bool is_alike<pearl::handle, ::handle>() { \
    return true;                                       \
  }
IS_NAMESAKE(CUctx_st)
IS_NAMESAKE(CUstream_st)
IS_NAMESAKE(CUevent_st)
IS_NAMESAKE(CUgraph_st)
IS_NAMESAKE(CUgraphNode_st)
IS_NAMESAKE(CUgraphExec_st)
IS_NAMESAKE(CUDA_MEMCPY3D)  // field by field, below

template <typename Ours, typename Theirs>
struct IsAlikeCall : std::false_type {};
template <typename... Ours, typename... Theirs>
struct IsAlikeCall<pearl::CUresult (*)(Ours...), ::CUresult (*)(Theirs...)> {
  template <bool is_as_long>
  static constexpr bool all() {
    if constexpr (is_as_long) return (is_alike<Ours, Theirs>() && ...);
    return false;
  }
  static constexpr bool value = all<sizeof...(Ours) == sizeof...(Theirs)>();
};

// The name of a call is pasted, never expanded: cuda.h has macros of the same names.
#define SAME_CALL(name, version, parameters)                                     \
  static_assert(version <= 12000, #name " needs a driver newer than 12.0");      \
  static_assert(IsAlikeCall<pearl::Ours_##name, PFN_##name##_v##version>::value, \
                #name " is declared differently");
PEARL_CUDA_CALLS(SAME_CALL)

#define SAME_NUMBER(number) \
  static_assert(static_cast<int>(pearl::number) == static_cast<int>(::number), #number);
SAME_NUMBER(CUDA_SUCCESS)
SAME_NUMBER(CUDA_ERROR_INVALID_VALUE)
SAME_NUMBER(CUDA_ERROR_OUT_OF_MEMORY)
SAME_NUMBER(CUDA_ERROR_DEINITIALIZED)
SAME_NUMBER(CUDA_ERROR_NO_DEVICE)
SAME_NUMBER(CUDA_ERROR_INVALID_HANDLE)
SAME_NUMBER(CUDA_ERROR_NOT_READY)
SAME_NUMBER(CUDA_ERROR_ILLEGAL_ADDRESS)
SAME_NUMBER(CUDA_ERROR_LAUNCH_FAILED)
SAME_NUMBER(CUDA_ERROR_NOT_SUPPORTED)
SAME_NUMBER(CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY)
SAME_NUMBER(CU_STREAM_NON_BLOCKING)
SAME_NUMBER(CU_EVENT_DEFAULT)
SAME_NUMBER(CU_EVENT_DISABLE_TIMING)
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
SAME_NUMBER(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)

// A struct that is handed over: each field in its place, of its size.
#define SAME_FIELD(type, field)                                            \
  static_assert(offsetof(pearl::type, field) == offsetof(::type, field) && \
                    sizeof(pearl::type::field) == sizeof(::type::field),   \
                #type "." #field);
static_assert(sizeof(pearl::CUDA_MEMCPY3D) == sizeof(::CUDA_MEMCPY3D));
SAME_FIELD(CUDA_MEMCPY3D, srcXInBytes)
SAME_FIELD(CUDA_MEMCPY3D, srcY)
SAME_FIELD(CUDA_MEMCPY3D, srcZ)
SAME_FIELD(CUDA_MEMCPY3D, srcLOD)
SAME_FIELD(CUDA_MEMCPY3D, srcMemoryType)
SAME_FIELD(CUDA_MEMCPY3D, srcHost)
SAME_FIELD(CUDA_MEMCPY3D, srcDevice)
SAME_FIELD(CUDA_MEMCPY3D, srcArray)
SAME_FIELD(CUDA_MEMCPY3D, reserved0)
SAME_FIELD(CUDA_MEMCPY3D, srcPitch)
SAME_FIELD(CUDA_MEMCPY3D, srcHeight)
SAME_FIELD(CUDA_MEMCPY3D, dstXInBytes)
SAME_FIELD(CUDA_MEMCPY3D, dstY)
SAME_FIELD(CUDA_MEMCPY3D, dstZ)
SAME_FIELD(CUDA_MEMCPY3D, dstLOD)
SAME_FIELD(CUDA_MEMCPY3D, dstMemoryType)
SAME_FIELD(CUDA_MEMCPY3D, dstHost)
SAME_FIELD(CUDA_MEMCPY3D, dstDevice)
SAME_FIELD(CUDA_MEMCPY3D, dstArray)
SAME_FIELD(CUDA_MEMCPY3D, reserved1)
SAME_FIELD(CUDA_MEMCPY3D, dstPitch)
SAME_FIELD(CUDA_MEMCPY3D, dstHeight)
SAME_FIELD(CUDA_MEMCPY3D, WidthInBytes)
SAME_FIELD(CUDA_MEMCPY3D, Height)
SAME_FIELD(CUDA_MEMCPY3D, Depth)
SAME_NUMBER(CU_MEMORYTYPE_UNIFIED)
SAME_NUMBER(CU_STREAM_CAPTURE_MODE_RELAXED)

// What driver.cpp asks for the calls.
static_assert(CU_GET_PROC_ADDRESS_LEGACY_STREAM == 1);
static_assert(std::is_same_v<PFN_cuGetProcAddress_v12000, ::CUresult (*)(const char*, void**, int, cuuint64_t,
                                                                         CUdriverProcAddressQueryResult*)>);
static_assert(sizeof(CUdriverProcAddressQueryResult) == sizeof(int));
