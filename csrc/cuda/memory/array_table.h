// The arrays of a running batch in a device's memory, as one table: their names, what lies in a row of each,
// and which value of a request a row begins with. Knows layouts; not addresses, copies or order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coordinator/state.h"
#include "cuda/driver/driver_api.h"

namespace pearl {

// By the names of pearl_rt/state.py. ring: pinned host memory. chunk: [B, 2] of this lane's prefill. joining:
// [B] finish_reason of the slots that step "join" judges. block_table: [B, MB] KV blocks of a slot.
// num_logprobs, logprob_ring: of pearl_rt/device/logprob_ring.py; the ring is pinned host memory, as
// csrc/cuda/memory/logprob_ring.h reads it. From repetition_penalty on: of
// pearl_rt/device/logits_processors.py; kept_thresholds [B, S] belong to rows of draft logits, set by draft.
struct ArrayAddresses {
  CUdeviceptr prompt_len = 0, max_total_len = 0, gamma = 0, temperature = 0, seed = 0, stop_token_ids = 0,
              token_ids = 0, committed = 0, pending = 0, finish_reason = 0, round = 0, ring = 0,
              draft_token_ids = 0, num_draft_tokens = 0, draft_logits = 0, num_rows = 0, target_logits = 0,
              chunk = 0, joining = 0, block_table = 0, num_logprobs = 0, logprob_ring = 0,
              repetition_penalty = 0, frequency_penalty = 0, presence_penalty = 0, top_p = 0, min_p = 0,
              top_k = 0, min_tokens = 0, masked_ids = 0, bias_ids = 0, bias = 0, kept_thresholds = 0;
};

struct ArraySizes {
  static constexpr int64_t kMostRounds = 1 << 20;  // of a ring

  int num_slots = 1;         // B
  int gamma_max = 0;         // G
  int64_t capacity = 0;      // C
  int vocab_size = 0;        // V
  int draft_vocab_size = 0;  // Vd, of draft_logits
  int num_stop_ids = 0;      // NS
  int ring_size = 0;         // RING
  int prefill_chunk = 0;     // tokens of a prefill pass; prompts are cut at its multiples
  int num_biased = 0;        // ids of logit_bias; 0: there are no arrays of logits processors
  int max_logprobs = -1;     // likeliest tokens reported with each at most; -1: there are no arrays of them
  int block_size = 16;       // BS, positions of a KV block
  int num_blocks = 0;        // of this lane's KV cache

  // Throws Failure(kRequest) for sizes that no arrays can have. Those of no arrays yet are 0: of the target's
  // vocabulary, the ring and the pool of blocks.
  void check() const;

  // MB: of a slot.
  size_t max_blocks() const {
    const int64_t size = std::max(block_size, 1);  // one that no cache can have is refused later
    return static_cast<size_t>((capacity + size - 1) / size);
  }
  // Where the pass of a prompt that begins with token `start` ends.
  int64_t pass_end(int64_t start, int64_t length) const {
    return std::min((start / prefill_chunk + 1) * prefill_chunk, length);
  }
  size_t max_masked() const { return 2 * static_cast<size_t>(num_stop_ids); }  // ids that min_tokens forbids
};

enum class ArrayPart { kRound, kLogprobs, kProcessors };

struct ArrayField {
  const char* name;
  CUdeviceptr ArrayAddresses::* address;
  ArrayPart part = ArrayPart::kRound;
  // Of those whose row is copied when a request takes a slot; write is null for the others.
  size_t element = 0;                              // bytes
  size_t (*columns)(const ArraySizes&) = nullptr;  // elements of a row
  // Writes the row of a slot, idle or not, to memory of zeros.
  void (*write)(const State&, int slot, size_t columns, void* row) = nullptr;

  bool exists(const ArraySizes& sizes) const {
    return part == ArrayPart::kRound || (part == ArrayPart::kLogprobs && sizes.max_logprobs >= 0) ||
           (part == ArrayPart::kProcessors && sizes.num_biased > 0);
  }
};

const std::vector<ArrayField>& array_fields();

}  // namespace pearl
