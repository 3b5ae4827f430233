// Whether the matmul of a table computes what another table's does: for instructions that run here for the
// first time.
#pragma once

#include "cpu/kernels/kernels.h"

namespace pearl {

// `tested`, once a few small matmuls of it gave the sums of `sure`, which are integers and so have the same
// bits in any order. Both are tables of bf16. Throws Failure(kResource), which names the instruction set to
// take instead, where one sum differs: nothing is computed with `tested` then.
const Kernels& checked_kernels(const Kernels& tested, const Kernels& sure);

}  // namespace pearl
