// How a warp holds the left matrix of mma and of wgmma.
#pragma once

#include <cstdint>

#include "ptx/native/instruction.h"

namespace ptx {

// Register i of four: entries of a [16, 16] matrix, two of 16 bits beside each other in a lane.
template <float (*from)(uint32_t)>
void read_left(const uint32_t* values, int i, float (*left)[16]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int row = lane / 4 + 8 * (i % 2), k = 2 * (lane % 4) + 8 * (i / 2);
    left[row][k] = from(values[lane] & 0xFFFF);
    left[row][k + 1] = from(values[lane] >> 16);
  }
}

// sum [16, stride] += left [16, 16] times right [16, stride], n columns of them: each sum in the order of k.
void accumulate(float* sum, const float (*left)[16], const float* right, int stride, int n);

}  // namespace ptx
