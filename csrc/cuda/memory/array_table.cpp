#include "cuda/memory/array_table.h"

#include "core/checks.h"
#include "cuda/memory/logprob_ring.h"

namespace pearl {

namespace {

size_t one(const ArraySizes&) { return 1; }
size_t stop_ids(const ArraySizes& sizes) { return static_cast<size_t>(sizes.num_stop_ids); }
size_t masked_ids(const ArraySizes& sizes) { return sizes.max_masked(); }
size_t biased_ids(const ArraySizes& sizes) { return static_cast<size_t>(sizes.num_biased); }
size_t blocks(const ArraySizes& sizes) { return sizes.max_blocks(); }

// A row of one value.
template <typename T, auto value>
void scalar(const State& state, int slot, size_t, void* row) {
  *static_cast<T*>(row) = static_cast<T>(value(state, slot));
}
// The slot's entry of a vector of State.
template <typename T, auto member>
void entry(const State& state, int slot, size_t, void* row) {
  *static_cast<T*>(row) = static_cast<T>((state.*member)[slot]);
}
// Ids, then -1.
template <auto ids>
void list(const State& state, int slot, size_t columns, void* row) {
  auto* const to = static_cast<int32_t*>(row);
  std::fill_n(to, columns, -1);
  ids(state, slot, to);
}

// The slot's logits processors; off for an idle slot.
const Transform& processors(const State& state, int slot) {
  static const Transform off;
  return state.idle(slot) || !state.is_processed(slot) ? off : state.transform[slot];
}
template <typename T, auto value>
void processor(const State& state, int slot, size_t, void* row) {
  *static_cast<T*>(row) = static_cast<T>(value(processors(state, slot)));
}

void copy_stop_ids(const State& state, int slot, int32_t* to) {
  if (state.idle(slot)) return;
  std::copy(state.stop_token_ids[slot].begin(), state.stop_token_ids[slot].end(), to);
}
void copy_masked_ids(const State& state, int slot, int32_t* to) {
  const Transform& own = processors(state, slot);
  if (own.min_tokens > 0) std::copy(own.masked_ids.begin(), own.masked_ids.end(), to);
}
void copy_bias_ids(const State& state, int slot, int32_t* to) {
  for (const auto& [id, amount] : processors(state, slot).logit_bias) *to++ = id;
}
void copy_bias(const State& state, int slot, size_t, void* row) {
  auto* to = static_cast<float*>(row);
  for (const auto& [id, amount] : processors(state, slot).logit_bias) *to++ = amount;
}
// Behind the slot's blocks lie zeros: they are never read.
void copy_blocks(const State& state, int slot, size_t columns, void* row) {
  std::copy_n(state.block_table.begin() + static_cast<size_t>(slot) * columns, state.num_held[slot],
              static_cast<int32_t*>(row));
}
void nothing(const State&, int, size_t, void*) {}

}  // namespace

const std::vector<ArrayField>& array_fields() {
  using enum ArrayPart;
  constexpr size_t k4 = 4, k8 = 8;
#define PEARL_ARRAY(name) #name, &ArrayAddresses::name
  static const std::vector<ArrayField> fields = {
      {PEARL_ARRAY(prompt_len), kRound, k4, one, entry<int32_t, &State::prompt_len>},
      {PEARL_ARRAY(max_total_len), kRound, k4, one, entry<int32_t, &State::max_total_len>},
      {PEARL_ARRAY(gamma), kRound, k4, one, entry<int32_t, &State::gamma>},
      {PEARL_ARRAY(temperature), kRound, k4, one, entry<float, &State::temperature>},
      {PEARL_ARRAY(seed), kRound, k8, one, entry<uint64_t, &State::seed>},
      {PEARL_ARRAY(stop_token_ids), kRound, k4, stop_ids, list<copy_stop_ids>},
      {PEARL_ARRAY(token_ids)},  // as much of a row as the prompt is long: DeviceArrays::add_rows
      {PEARL_ARRAY(committed), kRound, k4, one, entry<int32_t, &State::prompt_len>},
      {PEARL_ARRAY(pending), kRound, k4, one, nothing},
      {PEARL_ARRAY(finish_reason)},  // last of all: DeviceArrays::upload, JoinCopies
      {PEARL_ARRAY(round), kRound, k4, one, nothing},
      {PEARL_ARRAY(ring)},
      {PEARL_ARRAY(draft_token_ids)},
      {PEARL_ARRAY(num_draft_tokens), kRound, k4, one, nothing},
      {PEARL_ARRAY(draft_logits)},
      {PEARL_ARRAY(num_rows), kRound, k4, one, nothing},
      {PEARL_ARRAY(target_logits)},
      {PEARL_ARRAY(chunk)},
      {PEARL_ARRAY(joining)},
      {PEARL_ARRAY(block_table), kRound, k4, blocks, copy_blocks},
      {PEARL_ARRAY(num_logprobs), kLogprobs, k4, one, entry<int32_t, &State::num_logprobs>},
      {PEARL_ARRAY(logprob_ring), kLogprobs},
      {PEARL_ARRAY(repetition_penalty), kProcessors, k4, one,
       processor<float, [](const Transform& t) { return t.repetition_penalty; }>},
      {PEARL_ARRAY(frequency_penalty), kProcessors, k4, one,
       processor<float, [](const Transform& t) { return t.frequency_penalty; }>},
      {PEARL_ARRAY(presence_penalty), kProcessors, k4, one,
       processor<float, [](const Transform& t) { return t.presence_penalty; }>},
      {PEARL_ARRAY(top_p), kProcessors, k4, one,
       processor<float, [](const Transform& t) { return t.filters.top_p; }>},
      {PEARL_ARRAY(min_p), kProcessors, k4, one,
       processor<float, [](const Transform& t) { return t.filters.min_p; }>},
      {PEARL_ARRAY(top_k), kProcessors, k4, one,
       processor<int32_t, [](const Transform& t) { return t.filters.top_k; }>},
      {PEARL_ARRAY(min_tokens), kProcessors, k4, one,
       processor<int32_t, [](const Transform& t) { return std::min<int64_t>(t.min_tokens, INT32_MAX); }>},
      {PEARL_ARRAY(masked_ids), kProcessors, k4, masked_ids, list<copy_masked_ids>},
      {PEARL_ARRAY(bias_ids), kProcessors, k4, biased_ids, list<copy_bias_ids>},
      {PEARL_ARRAY(bias), kProcessors, k4, biased_ids, copy_bias},
      {PEARL_ARRAY(kept_thresholds), kProcessors},
  };
#undef PEARL_ARRAY
  return fields;
}

void ArraySizes::check() const {
  check_between("num_slots", num_slots, 1, kMostSlots);
  check_between("gamma_max", gamma_max, 0, kLongestWindow);
  check_between("capacity", capacity, 2, kMostTokens);
  check_between("vocab_size", vocab_size, 0, kMostIds);
  check_between("draft_vocab_size", draft_vocab_size, 0, kMostIds);
  check_between("num_stop_ids", num_stop_ids, 0, kMostIds);
  check_between("ring_size", ring_size, 0, kMostRounds);
  check_between("prefill_chunk", prefill_chunk, 1, kMostTokens);
  check_between("num_biased", num_biased, 0, kMostIds);
  check_between("max_logprobs", max_logprobs, -1, kMostIds);
  BlockPool::check(1, block_size);
  const double in_all = static_cast<double>(capacity) + 4.0 * num_stop_ids + 2.0 * num_biased +
                        2.0 * gamma_max * draft_vocab_size + (gamma_max + 1.0) * vocab_size +
                        (gamma_max + 1.0) * (ring_size + 1.0) * (max_logprobs + 2.0) * LogprobRing::kFields;
  check_number("the size of all arrays", in_all * num_slots, in_all * num_slots < 0x1p58, "below 2^58");
}

}  // namespace pearl
