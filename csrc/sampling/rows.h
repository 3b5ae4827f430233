// Rows in blocks of 256: noise, the best key so far, and sums in one fixed order. Plain loops over a whole
// block, which every compiler turns into vector code of whatever width; no result depends on that width.
#pragma once

#include <cstdint>

#include "core/noise.h"
#include "core/vector_math.h"

namespace pearl {

constexpr int kBlock = 256;

// Noise words of indices first .. first + kBlock - 1; first is a multiple of 4.
PEARL_INLINE void fill_words(uint32_t* __restrict words /*[kBlock]*/, uint64_t seed, int64_t position,
                             Purpose purpose, int first) {
  for (int group = 0; group < kBlock / 4; ++group) {
    const PhiloxWords four = noise_words(seed, position, purpose, static_cast<uint32_t>(first / 4 + group));
    for (int word = 0; word < 4; ++word) words[4 * group + word] = four.w[word];
  }
}

// A float as an integer of the same order, so that maxima vectorise. -0 becomes +0 (they tie); NaN lands
// above +inf or below -inf.
PEARL_INLINE int32_t ordered(float x) {
  const int32_t bits = bits_of(x + 0.0f);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

constexpr int32_t kOrderedInfinity = 0x7F800000;
constexpr int32_t kOrderedMinusInfinity = -0x7F800001;

PEARL_INLINE int32_t largest(const float* keys, int count) {
  int32_t best = INT32_MIN;
  for (int i = 0; i < count; ++i) best = ordered(keys[i]) > best ? ordered(keys[i]) : best;
  return best;
}

// The first index of a key; one of the `count` is it.
PEARL_INLINE int first_of(const float* keys, int count, int32_t key) {
  int block = 0;
  for (; block + kBlock <= count; block += kBlock) {
    int32_t found = 0;
    for (int i = 0; i < kBlock; ++i) found |= static_cast<int32_t>(ordered(keys[block + i]) == key);
    if (found) break;
  }
  while (ordered(keys[block]) != key) ++block;
  return block;
}

// The largest key offered above a floor, and its index; the lowest index wins ties.
struct Best {
  int32_t key;  // as ordered(); starts as the floor
  int32_t index;

  PEARL_INLINE bool could_take(const float* bounds /*[kBlock]*/) const {
    return largest(bounds, kBlock) > key;
  }

  // Keys of indices first .. first + kBlock - 1, in ascending calls.
  PEARL_INLINE void offer(const float* keys /*[kBlock]*/, int first) {
    const int32_t candidate = largest(keys, kBlock);
    if (candidate <= key) return;
    key = candidate;
    index = first + first_of(keys, kBlock, candidate);
  }
};

// A sum in fp64: 256 partial sums by index mod 256, then added by halves, i takes i + 128, then i + 64, .. i
// + 1.
struct BlockSum {
  double partial[kBlock] = {};

  PEARL_INLINE void add(const float* terms /*[kBlock]*/) {
    for (int i = 0; i < kBlock; ++i) partial[i] += static_cast<double>(terms[i]);
  }
  PEARL_INLINE double total() {
    for (int half = kBlock / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) partial[i] += partial[i + half];
    }
    return partial[0];
  }
};

}  // namespace pearl
