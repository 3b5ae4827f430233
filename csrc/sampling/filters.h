// Thresholds for min-p, top-k and top-p of one row, without a sort of it: a token is kept iff its logit is at
// least the threshold. numpy's twin: Transform.threshold of pearl_rt/reference/processors.py, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/sampling.h"

namespace pearl {

// Off as they stand here.
struct Filters {
  int32_t top_k = 0;   // keep the k largest, and what ties with the last of them; 0, or the vocabulary: all
  float top_p = 1.0f;  // keep the largest whose mass reaches top_p of what min_p and top_k left
  float min_p = 0.0f;  // keep p >= min_p * the largest p

  bool any() const { return top_k > 0 || top_p < 1.0f || min_p > 0.0f; }
};

// Memory that calls share.
struct FilterScratch {
  std::vector<int32_t> keys;
  std::vector<double> weights;
  std::vector<double> masses;
};

// Where logits are that order (blocks.h, `ordered`) at or above a bound, ascending.
void indices_at_least(const float* logits /*[vocab]*/, int vocab, int32_t bound, std::vector<int32_t>* out);

// The k-th largest logit. 1 <= k <= vocab.
float kth_largest(const float* logits /*[vocab]*/, int vocab, int k, FilterScratch* scratch);

// The largest of the thresholds that are on; -inf if none is. temperature > 0; `scan` is the row's.
float filter_threshold(const Filters& filters, const float* logits /*[vocab]*/, int vocab,
                       const RowScan& scan, float temperature, FilterScratch* scratch);

}  // namespace pearl
