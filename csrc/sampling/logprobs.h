// Log-probabilities of one row, before any transform. numpy's twin: pearl_rt/reference/logprobs.py, bit for
// bit.
#pragma once

#include <cstdint>
#include <vector>

#include "sampling/filters.h"

namespace pearl {

struct Logprob {
  int32_t token_id;
  float logprob;
  int32_t rank;  // 1 + the number of larger logits
};

// Appends 1 + k entries: the token's, then the k likeliest (the lowest ids among equals). A usable row;
// 0 <= k <= vocab.
void append_logprobs(const float* logits /*[vocab]*/, int vocab, int32_t token, int k, FilterScratch* scratch,
                     std::vector<Logprob>* out);

}  // namespace pearl
