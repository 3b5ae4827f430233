// What a request does to a row of logits before it is sampled or judged: masks, bias, penalties and filters.
// A pure function of (parameters, tokens before the row's position, row): draft and target go through the
// same one. Knows nothing of noise, windows or strategies. numpy's twin: pearl_rt/reference/processors.py,
// bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/token_mask.h"
#include "sampling/filters.h"
#include "sampling/token_counts.h"

namespace pearl {

// The parameters of one request, in the order in which they act; off as they stand here.
struct Transform {
  int64_t min_tokens = 0;           // until so many were generated, masked_ids cannot be sampled, unless the
                                    // form leaves nothing else
  std::vector<int32_t> masked_ids;  // end of text and stop ids
  std::vector<std::pair<int32_t, float>> logit_bias;
  float repetition_penalty = 1.0f;  // of tokens in prompt or answer
  float frequency_penalty = 0.0f;   // of tokens in the answer, times their number
  float presence_penalty = 0.0f;    // of tokens in the answer
  Filters filters;                  // at temperature > 0
  std::shared_ptr<TokenMask> mask;  // of an answer that has a form; acts before all others

  bool penalises() const {
    return repetition_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f;
  }
  // Whether a mask alone changes rows that are sampled greedily behind so many tokens of the answer.
  bool only_masks(float temperature, int64_t generated) const {
    return mask != nullptr && !(temperature > 0.0f) && generated >= min_tokens && logit_bias.empty() &&
           !penalises();
  }
  // Whether any row may come out changed.
  bool any(float temperature) const {
    return mask != nullptr || min_tokens > 0 || !logit_bias.empty() || penalises() ||
           (temperature > 0.0f && filters.any());
  }
};

// Throws Failure(kRequest) for a number that no row can take, or an id below 0.
void check(const Transform& transform);

// Applies transforms for the slots of one lane. What it remembers between calls saves time and changes
// nothing.
class Transformer {
 public:
  explicit Transformer(int num_slots) : counts_(num_slots) {}

  // In place. A row that is not usable stays as it is.
  void apply(const Transform& transform, float temperature, int slot, const Prefix& prefix,
             float* logits /*[vocab]*/, int vocab);
  // Into memory that lasts until the next call.
  const float* copy(const Transform& transform, float temperature, int slot, const Prefix& prefix,
                    const float* logits /*[vocab]*/, int vocab);

 private:
  void penalise(const Transform& transform, TokenCounts* counts, const Prefix& prefix, float* logits,
                int vocab);

  std::vector<TokenCounts> counts_;  // [B]
  std::vector<float> row_;
  FilterScratch scratch_;
};

// The token that sample() would take greedily from a row that apply() changes, where it is known without a
// mask: the row's likeliest one, if the form allows it. Else -1.
int32_t greedy_unmasked(const Transform& transform, float temperature, const Prefix& prefix,
                        const float* logits /*[vocab]*/, int vocab);

// The target's rows of one window, as its judge reads them: row r sees the candidates before it.
struct TransformedRows {
  Transformer* transformer;
  const Transform* transform;
  int slot;
  const int32_t* tokens;  // [position of the first row + rows]: the sequence, then its candidates
  int64_t prompt_len;
};

}  // namespace pearl
