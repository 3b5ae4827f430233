#include "sampling/transform.h"

#include <algorithm>
#include <limits>

#include "core/vector_math.h"

namespace pearl {

namespace {

PEARL_CLONES void drop_below(float threshold, float* logits, int vocab) {
  for (int i = 0; i < vocab; ++i) logits[i] = select(logits[i] >= threshold, logits[i], -kInfinity);
}

}  // namespace

void Transformer::apply(const Transform& transform, float temperature, int slot, const Prefix& prefix,
                        float* logits, int vocab) {
  if (!scan_row(logits, vocab).usable) return;
  if (prefix.generated() < transform.min_tokens) {
    for (const int32_t token : transform.masked_ids) {
      if (token < vocab) logits[token] = -kInfinity;
    }
  }
  for (const auto& [token, bias] : transform.logit_bias) {
    if (token < vocab) logits[token] += bias;
  }
  if (transform.penalises()) penalise(transform, &counts_[slot], prefix, logits, vocab);
  if (!(temperature > 0.0f) || !transform.filters.any()) return;
  const RowScan scan = scan_row(logits, vocab);
  if (!scan.usable) return;  // nothing is left
  drop_below(filter_threshold(transform.filters, logits, vocab, scan, temperature, &scratch_), logits, vocab);
}

void Transformer::penalise(const Transform& transform, TokenCounts* counts, const Prefix& prefix,
                           float* logits, int vocab) {
  constexpr float kMost = std::numeric_limits<float>::max();
  counts->sync(prefix);
  for (const int32_t token : counts->distinct()) {
    if (token >= vocab || logits[token] == -kInfinity) continue;
    const float x = logits[token];
    const int32_t times = counts->generated(token);
    float y = x > 0.0f ? x / transform.repetition_penalty : x * transform.repetition_penalty;
    y = y - transform.frequency_penalty * static_cast<float>(times);
    y = y - (times > 0 ? transform.presence_penalty : 0.0f);
    logits[token] = std::clamp(y, -kMost, kMost);
  }
}

const float* Transformer::copy(const Transform& transform, float temperature, int slot, const Prefix& prefix,
                               const float* logits, int vocab) {
  row_.assign(logits, logits + vocab);
  apply(transform, temperature, slot, prefix, row_.data(), vocab);
  return row_.data();
}

}  // namespace pearl
