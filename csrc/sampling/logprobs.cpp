#include "sampling/logprobs.h"

#include <algorithm>

#include "core/vector_math.h"
#include "sampling/rows.h"

namespace pearl {

namespace {

PEARL_CLONES int32_t count_above(const float* logits, int vocab, float value) {
  int32_t count = 0;
  for (int i = 0; i < vocab; ++i) count += static_cast<int32_t>(logits[i] > value);
  return count;
}

}  // namespace

void append_logprobs(const float* logits, int vocab, int32_t token, int k, FilterScratch* scratch,
                     std::vector<Logprob>* out) {
  const RowScan scan = scan_row(logits, vocab);
  const float mass = log_f32(static_cast<float>(exp_sum(logits, vocab, scan.max, 1.0f)));
  const auto entry = [&](int32_t id) {
    return Logprob{id, (logits[id] - scan.max) - mass, 1 + count_above(logits, vocab, logits[id])};
  };
  out->push_back(entry(token));
  if (k == 0) return;
  const float least = kth_largest(logits, vocab, k, scratch);
  std::vector<int32_t>& ids = scratch->keys;
  indices_at_least(logits, vocab, ordered(least), &ids);
  std::partial_sort(ids.begin(), ids.begin() + k, ids.end(), [logits](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  for (int i = 0; i < k; ++i) out->push_back(entry(ids[i]));
}

}  // namespace pearl
