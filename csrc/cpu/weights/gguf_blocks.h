// Blocks of a GGUF file's tensors as integer codes with their scales and minimums; the definition in numpy is
// pearl_rt/checkpoint/gguf/blocks.py. Knows bytes, and no file.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/kernels/kernels.h"

namespace pearl {

// A row of a tensor is a whole number of blocks. value = scale * (code - middle) + minimum.
struct BlockType {
  const char* name;   // as llama.cpp has it: "Q4_K"
  int values, bytes;  // of a block
  GroupForm form;     // of the codes as they are packed: with 4 bits, middle becomes a minimum
  int middle;         // not 0: there are no minimums in the file
  bool has_minimums;  // in the file
  // `blocks` blocks: codes, int8 of 8 bits and 0..15 of 4; scales and minimums fp32, one a group, the latter
  // if there are any.
  void (*decode)(const uint8_t* raw, int64_t blocks, uint8_t* codes, float* scales, float* minimums);
};

// Null for a name of no such type.
const BlockType* block_type(const std::string& name);

}  // namespace pearl
