#include "cpu/kernels/kernels.h"

namespace pearl {

const Kernels& kernels_of(Isa isa, DType dtype) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2_kernels(dtype);
    case Isa::kAvx512:
      return avx512_kernels(dtype);
    case Isa::kAmx:
      return amx_kernels(dtype);
#endif
    case Isa::kAmxEmulated:
      return amx_emulated_kernels(dtype);
    default:
      return portable_kernels(dtype);
  }
}

}  // namespace pearl
