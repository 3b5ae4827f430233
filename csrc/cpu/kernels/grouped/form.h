// Weights of 8 and 4 bits in groups that share a scale, as kernels read them; their definition in numpy is
// pearl_rt/reference/groups.py. Activations become 8-bit codes as well, so that the sums of a group are
// integers: they are exact, and so a result has the same bits on every instruction set.
#pragma once

#include <cstdint>

namespace pearl {

// What a packed matrix of codes holds. A column block is a sequence of records, one for each 64 inputs:
//
//   codes     8 bits: [16 steps][16 columns][4 inputs] code + 128
//             4 bits: [2 halves of 32 inputs][4 steps][16 columns][4 inputs]; the low half of a byte is the
//             code of input 4 step + i of its 32, the high half that of input 16 + 4 step + i
//   scales    fp16 [64 / group][16 columns]
//   minimums  fp16 [64 / group][16 columns], if has_minimums
struct GroupForm {
  int bits;           // 8 or 4
  int group;          // inputs to a scale: 32; or 16, with 8 bits
  bool has_minimums;  // value = scale * code + minimum; always with 4 bits

  int groups_of_record() const { return 64 / group; }
  int64_t scales_offset() const { return bits == 8 ? 1024 : 512; }  // bytes from the start of a record
  int64_t minimums_offset() const { return scales_offset() + 32 * groups_of_record(); }
  int64_t record_bytes() const { return minimums_offset() + (has_minimums ? 32 * groups_of_record() : 0); }
};
constexpr int kRecordDepth = 64;  // inputs of a record; K of a packed matrix of codes is a multiple of it

// A row of activations for a matrix of codes: int8 codes [k], then for each group an fp32 scale, an int32
// offset and an fp32 sum.
//
//   scale   largest magnitude of the group / 127; code = value / scale, rounded
//   offset  -128 * (sum of the codes) for weights of 8 bits, which are stored as code + 128
//   sum     scale * (sum of the codes)
struct GroupedRow {
  int k, group;  // k is a multiple of kRecordDepth

  int64_t num_groups() const { return k / group; }
  int64_t bytes() const { return k + 12 * num_groups(); }
  const float* scales(const char* row) const { return reinterpret_cast<const float*>(row + k); }
  const int32_t* offsets(const char* row) const {
    return reinterpret_cast<const int32_t*>(row + k + 4 * num_groups());
  }
  const float* sums(const char* row) const {
    return reinterpret_cast<const float*>(row + k + 8 * num_groups());
  }
};

inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1F;
  const uint32_t mantissa = half & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return __builtin_bit_cast(float, sign | biased << 23 | mantissa << 13);
}

}  // namespace pearl
