// The arrays of a scripted lane, and what scripted_cuda.py says of them.
#pragma once

#include <cstdint>

extern "C" struct ScriptedConfig {
  uint64_t addresses[33];  // in the order of NAMES in scripted_cuda.py
  int32_t num_slots, gamma_max, capacity, vocab_size, draft_vocab_size, num_stop_ids, ring_size;
  int32_t block_size, num_blocks, num_biased, max_logprobs, is_target;
  uint64_t rule;
  double divergence;
  int32_t executor_vocab;
  int64_t nan_at;
};

struct Arrays {
  int32_t *prompt_len, *max_total_len, *gamma;
  float* temperature;
  int64_t* seed;
  int32_t *stop_token_ids, *token_ids, *committed, *pending, *finish_reason, *round, *ring, *draft_token_ids,
      *num_draft_tokens;
  float* draft_logits;
  int32_t* num_rows;
  float* target_logits;
  int32_t *chunk, *joining, *num_logprobs, *logprob_ring, *block_table;
  float *repetition_penalty, *frequency_penalty, *presence_penalty, *top_p, *min_p;
  int32_t *top_k, *min_tokens, *masked_ids, *bias_ids;
  float *bias, *kept_thresholds;
};
static_assert(sizeof(Arrays) == sizeof(ScriptedConfig::addresses), "one pointer for each address");
