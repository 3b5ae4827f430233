// One token from one row of logits: greedy, or argmax(logits / temperature + Gumbel noise).
// Knows nothing of strategies or windows. numpy's twin: pearl_rt/reference/judge.py, bit for bit.
#pragma once

#include <cstdint>

#include "core/noise.h"

namespace pearl {

constexpr int32_t kPlaceholderTokenId = -1;

// What one pass over a row finds.
struct RowScan {
  float max;       // the largest logit
  int32_t argmax;  // where; the lowest index wins ties
  bool usable;     // no NaN, no +inf, and not all -inf
};

RowScan scan_row(const float* logits /*[vocab]*/, int vocab);

// 1 / temperature, kept finite and normal. temperature > 0.
float inverse_temperature(float temperature);

// sum over the row of exp((logit - max) * inverse): 16 fp64 partial sums by index mod 16, then a fixed tree.
double exp_sum(const float* logits /*[vocab]*/, int vocab, float max, float inverse);

// argmax over the row of (logit - max) * inverse + G(seed, position, purpose, index); `scan` is the row's.
int32_t sample_scanned(const float* logits /*[vocab]*/, int vocab, const RowScan& scan, float inverse,
                       uint64_t seed, int64_t position, Purpose purpose);

// The token of one row, in [0, vocab), or -1 if the row is not usable. temperature: 0 is greedy (as is
// anything that is not above 0); above 0, each index i gets noise of (seed, position, purpose, i) and nothing
// else is random.
int32_t sample(const float* logits /*[vocab]*/, int vocab, float temperature, uint64_t seed, int64_t position,
               Purpose purpose);

}  // namespace pearl
