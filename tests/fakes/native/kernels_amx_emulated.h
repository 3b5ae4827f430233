// Kernels whose tile registers are plain memory.
#pragma once

#include "cpu/kernels/kernels.h"

namespace pearl {

const Kernels& amx_emulated_kernels(DType dtype);

// The same, of bf16, but the last sum of the nth matmul from now on is too large by one.
const Kernels& amx_emulated_kernels_with_a_flaw(int nth);

}  // namespace pearl
