#include "sampling/sampling.h"

#include <algorithm>
#include <limits>

#include "core/vector_math.h"
#include "sampling/rows.h"

namespace pearl {

PEARL_CLONES RowScan scan_row(const float* logits, int vocab) {
  int32_t most = INT32_MIN;
  int32_t least = INT32_MAX;
  for (int i = 0; i < vocab; ++i) {
    const int32_t key = ordered(logits[i]);
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  if (least < kOrderedMinusInfinity || most >= kOrderedInfinity || most <= kOrderedMinusInfinity) {
    return {0.0f, kPlaceholderTokenId, false};
  }
  const int32_t at = first_of(logits, vocab, most);
  return {logits[at], at, true};
}

float inverse_temperature(float temperature) {
  return std::clamp(1.0f / temperature, std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
}

PEARL_CLONES double exp_sum(const float* logits, int vocab, float max, float inverse) {
  BlockSum sum;
  float terms[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    for (int i = 0; i < count; ++i) terms[i] = exp_f32((logits[first + i] - max) * inverse);
    for (int i = count; i < kBlock; ++i) terms[i] = 0.0f;
    sum.add(terms);
  }
  return sum.total();
}

PEARL_CLONES int32_t sample_scanned(const float* logits, int vocab, const RowScan& scan, float inverse,
                                    uint64_t seed, int64_t position, Purpose purpose) {
  const float max = scan.max;
  Best best = {kOrderedMinusInfinity, scan.argmax};  // stays if every key is -inf
  uint32_t words[kBlock];
  float scaled[kBlock];
  float keys[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    fill_words(words, seed, position, purpose, first);
    for (int i = 0; i < count; ++i) scaled[i] = (logits[first + i] - max) * inverse;
    for (int i = count; i < kBlock; ++i) scaled[i] = -kInfinity;
    for (int i = 0; i < kBlock; ++i) keys[i] = scaled[i] + gumbel_bound(uniform(words[i]));
    if (!best.could_take(keys)) continue;  // rounding is monotonic: no key of this block can win
    for (int i = 0; i < kBlock; ++i) keys[i] = scaled[i] + gumbel_of(uniform(words[i]));
    best.offer(keys, first);
  }
  return best.index;
}

int32_t sample(const float* logits, int vocab, float temperature, uint64_t seed, int64_t position,
               Purpose purpose) {
  const RowScan scan = scan_row(logits, vocab);
  if (!scan.usable || !(temperature > 0.0f)) return scan.argmax;
  return sample_scanned(logits, vocab, scan, inverse_temperature(temperature), seed, position, purpose);
}

}  // namespace pearl
