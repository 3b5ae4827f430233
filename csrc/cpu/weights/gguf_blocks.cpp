#include "cpu/weights/gguf_blocks.h"

#include <cstring>

namespace pearl {
namespace {

float half_at(const uint8_t* block, int at) {
  uint16_t half;
  std::memcpy(&half, block + at, sizeof half);
  return float_of_half(half);
}

// n bytes -> 2 n codes: the low halves, then the high ones.
void halves(const uint8_t* bytes, int n, uint8_t* codes) {
  for (int i = 0; i < n; ++i) {
    codes[i] = bytes[i] & 15;
    codes[n + i] = bytes[i] >> 4;
  }
}

// Bit i of the 32 at `at` becomes bit 4 of code i; `middle` is subtracted.
void add_fifth_bits(const uint8_t* at, int middle, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) {
    const int high = at[i / 8] >> i % 8 & 1;
    codes[i] = static_cast<uint8_t>((codes[i] | high << 4) - middle);
  }
}

void q8_0(const uint8_t* block, uint8_t* codes, float* scales, float*) {
  scales[0] = half_at(block, 0);
  std::memcpy(codes, block + 2, 32);
}

void q4_0(const uint8_t* block, uint8_t* codes, float* scales, float*) {
  scales[0] = half_at(block, 0);
  halves(block + 2, 16, codes);
}

void q4_1(const uint8_t* block, uint8_t* codes, float* scales, float* minimums) {
  scales[0] = half_at(block, 0);
  minimums[0] = half_at(block, 2);
  halves(block + 4, 16, codes);
}

void q5_0(const uint8_t* block, uint8_t* codes, float* scales, float*) {
  scales[0] = half_at(block, 0);
  halves(block + 6, 16, codes);
  add_fifth_bits(block + 2, 16, codes);
}

void q5_1(const uint8_t* block, uint8_t* codes, float* scales, float* minimums) {
  scales[0] = half_at(block, 0);
  minimums[0] = half_at(block, 2);
  halves(block + 8, 16, codes);
  add_fifth_bits(block + 4, 0, codes);
}

// Of 8 groups: two fp16 times integers of 6 bits, which 12 bytes hold.
void k_scales(const uint8_t* block, float* scales, float* minimums) {
  const float d = half_at(block, 0), dmin = half_at(block, 2);
  const uint8_t *low = block + 4, *middle = block + 8, *high = block + 12;
  for (int i = 0; i < 4; ++i) {
    scales[i] = d * static_cast<float>(low[i] & 63);
    scales[4 + i] = d * static_cast<float>((high[i] & 15) | (low[i] >> 2 & 48));
    minimums[i] = -(dmin * static_cast<float>(middle[i] & 63));
    minimums[4 + i] = -(dmin * static_cast<float>(high[i] >> 4 | (middle[i] >> 2 & 48)));
  }
}

void q4_k(const uint8_t* block, uint8_t* codes, float* scales, float* minimums) {
  k_scales(block, scales, minimums);
  for (int i = 0; i < 4; ++i) halves(block + 16 + 32 * i, 32, codes + 64 * i);
}

void q5_k(const uint8_t* block, uint8_t* codes, float* scales, float* minimums) {
  k_scales(block, scales, minimums);
  const uint8_t* fifth = block + 16;  // bit g of byte i: of code i of group g
  for (int i = 0; i < 4; ++i) halves(block + 48 + 32 * i, 32, codes + 64 * i);
  for (int group = 0; group < 8; ++group) {
    uint8_t* own = codes + 32 * group;
    for (int i = 0; i < 32; ++i) own[i] = static_cast<uint8_t>(own[i] | (fifth[i] >> group & 1) << 4);
  }
}

void q6_k(const uint8_t* block, uint8_t* codes, float* scales, float*) {
  const float d = half_at(block, 208);
  for (int i = 0; i < 16; ++i) scales[i] = d * static_cast<float>(static_cast<int8_t>(block[192 + i]));
  for (int part = 0; part < 2; ++part) {
    uint8_t* own = codes + 128 * part;
    const uint8_t* high = block + 128 + 32 * part;  // two bits of four codes, 32 apart
    halves(block + 64 * part, 64, own);
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int i = 0; i < 32; ++i) {
        const int code = own[32 * quarter + i] | (high[i] >> 2 * quarter & 3) << 4;
        own[32 * quarter + i] = static_cast<uint8_t>(code - 32);
      }
    }
  }
}

template <void (*BLOCK)(const uint8_t*, uint8_t*, float*, float*), int VALUES, int BYTES, int GROUP>
void decode(const uint8_t* raw, int64_t blocks, uint8_t* codes, float* scales, float* minimums) {
  for (int64_t i = 0; i < blocks; ++i) {
    BLOCK(raw, codes, scales, minimums);
    raw += BYTES;
    codes += VALUES;
    scales += VALUES / GROUP;
    minimums += VALUES / GROUP;
  }
}

constexpr GroupForm k8{8, 32, false}, k8Min{8, 32, true}, k8Of16{8, 16, false}, k4{4, 32, true};
const BlockType kTypes[] = {
    {"Q8_0", 32, 34, k8, 0, false, decode<q8_0, 32, 34, 32>},
    {"Q4_0", 32, 18, k4, 8, false, decode<q4_0, 32, 18, 32>},
    {"Q4_1", 32, 20, k4, 0, true, decode<q4_1, 32, 20, 32>},
    {"Q5_0", 32, 22, k8, 0, false, decode<q5_0, 32, 22, 32>},
    {"Q5_1", 32, 24, k8Min, 0, true, decode<q5_1, 32, 24, 32>},
    {"Q4_K", 256, 144, k4, 0, true, decode<q4_k, 256, 144, 32>},
    {"Q5_K", 256, 176, k8Min, 0, true, decode<q5_k, 256, 176, 32>},
    {"Q6_K", 256, 210, k8Of16, 0, false, decode<q6_k, 256, 210, 16>},
};

}  // namespace

const BlockType* block_type(const std::string& name) {
  for (const BlockType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

}  // namespace pearl
