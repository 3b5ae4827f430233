#include "sampling/transform.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/checks.h"
#include "core/vector_math.h"

namespace pearl {

namespace {

PEARL_CLONES void drop_below(float threshold, float* logits, int vocab) {
  for (int i = 0; i < vocab; ++i) logits[i] = select(logits[i] >= threshold, logits[i], -kInfinity);
}

// Nothing happens if the form of the answer, where it has one, leaves no other token.
void forbid(const std::vector<int32_t>& ids, bool has_form, float* logits, int vocab) {
  std::vector<std::pair<int32_t, float>> before;
  for (const int32_t token : ids) {
    if (token >= vocab) continue;
    if (has_form) before.emplace_back(token, logits[token]);
    logits[token] = -kInfinity;
  }
  if (!has_form || scan_row(logits, vocab).usable) return;
  for (const auto& [token, logit] : before) logits[token] = logit;
}

}  // namespace

void check(const Transform& transform) {
  const Filters& filters = transform.filters;
  check_number("top_k", filters.top_k, filters.top_k >= 0, "1 or more, or 0 for all tokens");
  check_number("top_p", filters.top_p, filters.top_p > 0.0f && filters.top_p <= 1.0f, "above 0, up to 1");
  check_number("min_p", filters.min_p, filters.min_p >= 0.0f && filters.min_p <= 1.0f, "0 to 1");
  const float repetition = transform.repetition_penalty;
  check_number("repetition_penalty", repetition, std::isnormal(repetition) && repetition > 0.0f, "above 0");
  check_finite("presence_penalty", transform.presence_penalty);
  check_finite("frequency_penalty", transform.frequency_penalty);
  if (transform.min_tokens < 0) {
    refuse("min_tokens is " + std::to_string(transform.min_tokens) + "; it must be at least 0");
  }
  check_ids("masked_ids", transform.masked_ids);
  for (const auto& [token, bias] : transform.logit_bias) {
    check_finite("logit_bias", bias);
    if (token < 0) refuse("logit_bias has " + std::to_string(token) + "; ids begin with 0");
  }
}

void Transformer::apply(const Transform& transform, float temperature, int slot, const Prefix& prefix,
                        float* logits, int vocab) {
  if (!scan_row(logits, vocab).usable) return;
  const bool has_form = transform.mask != nullptr && transform.mask->apply(prefix.answer(), logits, vocab);
  if (prefix.generated() < transform.min_tokens) forbid(transform.masked_ids, has_form, logits, vocab);
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

int32_t greedy_unmasked(const Transform& transform, float temperature, const Prefix& prefix,
                        const float* logits, int vocab) {
  if (!transform.only_masks(temperature, prefix.generated())) return kPlaceholderTokenId;
  const RowScan scan = scan_row(logits, vocab);
  const bool stands = scan.usable && transform.mask->leaves(prefix.answer(), scan.argmax);
  return stands ? scan.argmax : kPlaceholderTokenId;
}

const float* Transformer::copy(const Transform& transform, float temperature, int slot, const Prefix& prefix,
                               const float* logits, int vocab) {
  row_.assign(logits, logits + vocab);
  apply(transform, temperature, slot, prefix, row_.data(), vocab);
  return row_.data();
}

}  // namespace pearl
