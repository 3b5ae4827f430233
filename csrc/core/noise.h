// Randomness as a pure function: (request seed, absolute position, purpose, vocabulary index) -> 32 bits.
// Knows nothing of logits, rounds or judges. numpy's twin: pearl_rt/reference/noise.py, bit for bit.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
//   key     = (seed low, seed high)
//   counter = (index >> 2, position low, position high, purpose)
//   the word of `index` is output word index & 3; an accept uniform is index 0.
#pragma once

#include <cstdint>

#define PEARL_INLINE inline __attribute__((always_inline))

namespace pearl {

// What a random number decides. Two decisions never share a counter: sharing is the classic bias of this
// field.
enum class Purpose : uint32_t {
  kDraft = 0,     // the draft samples its own tokens            (rejection)
  kAccept = 1,    // the uniform of the accept test              (rejection)
  kResidual = 2,  // the token that replaces a rejected one      (rejection)
  kBonus = 3,     // sampled from the target alone: ar, first token, bonus  (rejection)
  kTarget = 4,    // shared by draft and target on purpose       (coupled)
  kSample = 5,    // the seed of one of n answers                (pearl_rt/reference/noise.py)
  kStop = 6,      // whether a window goes on, by chance         (drafters/stop_rule.cpp)
};

struct PhiloxWords {
  uint32_t w[4];
};

// Each word sits in 64 bits whose upper half may hold what is left of a product: xors then need no masks and
// a loop over counters vectorises without shuffles.
PEARL_INLINE PhiloxWords philox4x32_10(uint64_t c0, uint64_t c1, uint64_t c2, uint64_t c3, uint32_t k0,
                                       uint32_t k1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * (c0 & 0xFFFFFFFFu);
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * (c2 & 0xFFFFFFFFu);
    c0 = (product1 >> 32) ^ c1 ^ k0;
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ k1;
    c3 = product0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{static_cast<uint32_t>(c0), static_cast<uint32_t>(c1), static_cast<uint32_t>(c2),
           static_cast<uint32_t>(c3)}};
}

// The four words of indices 4 * group .. 4 * group + 3.
PEARL_INLINE PhiloxWords noise_words(uint64_t seed, int64_t position, Purpose purpose, uint32_t group) {
  const auto place = static_cast<uint64_t>(position);
  return philox4x32_10(group, static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32),
                       static_cast<uint32_t>(purpose), static_cast<uint32_t>(seed),
                       static_cast<uint32_t>(seed >> 32));
}

// u = (word + 0.5) * 2^-32, rounded once to fp32 (nearest, ties to even): from 2^-33 to 1, both included.
// In fp32 operations: both halves of the word are exact, their sum rounds once, the scaling is exact.
PEARL_INLINE float uniform(uint32_t word) {
  const float high = static_cast<float>(static_cast<int32_t>(word >> 16)) * 65536.0f;
  const float low = static_cast<float>(static_cast<int32_t>(word & 0xFFFFu)) + 0.5f;
  return (high + low) * 0x1p-32f;
}

PEARL_INLINE float accept_uniform(uint64_t seed, int64_t position) {
  return uniform(noise_words(seed, position, Purpose::kAccept, 0).w[0]);
}

}  // namespace pearl
