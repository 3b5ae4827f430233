// Kernels whose tile registers are plain memory.
#pragma once

#include "cpu/kernels/kernels.h"

namespace pearl {

const Kernels& amx_emulated_kernels(DType dtype);

}  // namespace pearl
