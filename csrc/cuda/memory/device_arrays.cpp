#include "cuda/memory/device_arrays.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/checks.h"
#include "core/failure.h"
#include "cuda/memory/join_copies.h"
#include "cuda/memory/verdict_ring.h"

namespace pearl {

namespace {

int64_t passes(int64_t length, int64_t chunk) { return (length + chunk - 1) / chunk; }

void check_size(const std::string& lane, const char* name, int64_t found, int64_t expected) {
  if (found != expected) {
    refuse("the arrays of the " + lane + " lane have " + name + " " + std::to_string(found) +
           "; the coordinator's is " + std::to_string(expected));
  }
}

const ArraySizes& checked(const ArraySizes& sizes) {
  sizes.check();
  check_between("vocab_size", sizes.vocab_size, 1, kMostIds);
  check_between("ring_size", sizes.ring_size, 2, ArraySizes::kMostRounds);
  BlockPool::check(sizes.num_blocks, sizes.block_size);
  return sizes;
}

}  // namespace

DeviceArrays::DeviceArrays(const std::map<std::string, CUdeviceptr>& addresses, const ArraySizes& sizes,
                           CUdeviceptr staging, size_t staging_bytes, std::shared_ptr<void> owner)
    : sizes_(checked(sizes)), staging_bytes_(staging_bytes), owner_(std::move(owner)) {
  std::map<std::string, CUdeviceptr> unknown = addresses;
  for (const ArrayField& field : array_fields()) {
    if (field.exists(sizes)) unknown.erase(field.name);
  }
  if (!unknown.empty()) {
    refuse("no array is called '" + unknown.begin()->first +
           "': see pearl_rt/state.py, with num_biased device/logits_processors.py, with max_logprobs "
           "device/logprob_ring.py");
  }
  for (const ArrayField& field : array_fields()) {
    if (!field.exists(sizes)) continue;
    const std::string name = field.name;
    const auto found = addresses.find(name);
    // Torch gives no address to the arrays of a window where there is no draft, nor to rows that certain
    // drafts have not got.
    const bool is_empty = (sizes.gamma_max == 0 && name == "draft_token_ids") ||
                          (sizes.gamma_max * sizes.draft_vocab_size == 0 && name == "draft_logits");
    if (found == addresses.end() || (found->second == 0 && !is_empty)) {
      refuse("array '" + name + "' has no address; all of pearl_rt/state.py and the lane's chunk are needed");
    }
    at_.*field.address = found->second;
  }
  const size_t needed = DeviceArrays::staging_bytes(sizes, false);
  if (staging == 0 || staging % Staging::kAlignment != 0 || staging_bytes < needed) {
    refuse("staging has " + std::to_string(staging_bytes) + " bytes at " + std::to_string(staging) + "; " +
           std::to_string(needed) + " are needed, aligned to " + std::to_string(Staging::kAlignment));
  }
  const size_t for_joins = JoinCopies::staging_bytes(sizes);
  char* const begin = reinterpret_cast<char*>(staging);
  join_staging_ = Staging(begin, for_joins);
  staging_ = Staging(begin + for_joins, staging_bytes - for_joins);
}

size_t DeviceArrays::row_bytes(const ArraySizes& sizes, size_t slots) {
  size_t total = slots * Staging::bytes<int32_t>(static_cast<size_t>(sizes.capacity));  // prompts
  for (const ArrayField& field : array_fields()) {
    if (field.write == nullptr || !field.exists(sizes)) continue;
    total += Staging::bytes<char>(slots * field.columns(sizes) * field.element);
  }
  return total;
}

size_t DeviceArrays::staging_bytes(const ArraySizes& sizes, bool host_logits) {
  sizes.check();
  const auto slots = static_cast<size_t>(sizes.num_slots);
  const auto gamma = static_cast<size_t>(sizes.gamma_max);
  const auto num_passes = static_cast<size_t>(passes(sizes.capacity, sizes.prefill_chunk));
  size_t total = JoinCopies::staging_bytes(sizes) + row_bytes(sizes, slots);
  total += 2 * Staging::bytes<int32_t>(slots);
  total += Staging::bytes<int32_t>(2) + Staging::bytes<int32_t>(2 * slots * num_passes);
  total += Staging::bytes<int32_t>(slots) + Staging::bytes<int32_t>(slots * gamma);
  if (host_logits) total += Staging::bytes<float>(slots * gamma * sizes.draft_vocab_size);
  return total;
}

void DeviceArrays::check_sizes(const State& state, const std::string& lane) const {
  check_size(lane, "num_slots", sizes_.num_slots, state.num_slots);
  check_size(lane, "capacity", sizes_.capacity, state.capacity);
  check_size(lane, "vocab_size", sizes_.vocab_size, state.vocab_size);
  state.check_caches("the arrays of the " + lane + " lane have", sizes_.num_blocks, sizes_.block_size);
  if (sizes_.gamma_max < state.gamma_max) {
    refuse("the arrays of the " + lane + " lane have room for windows of " +
           std::to_string(sizes_.gamma_max) + " tokens; the coordinator's gamma_max is " +
           std::to_string(state.gamma_max));
  }
}

void DeviceArrays::check_stops(size_t found, const std::string& lane) const {
  if (found > static_cast<size_t>(sizes_.num_stop_ids)) {
    refuse(std::to_string(found) + " end-of-text and stop ids; the " + lane + " lane takes " +
           std::to_string(sizes_.num_stop_ids) + ": pass fewer");
  }
}

void DeviceArrays::check_requests(const State& state, const std::string& lane) const {
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (!state.running(slot)) continue;
    check_stops(state.stop_token_ids[slot].size(), lane);
    if (state.is_processed(slot)) check_processors(state.transform[slot], lane);
  }
}

void DeviceArrays::check_request(const Request& request, const std::string& lane) const {
  check_stops(request.stop_token_ids.size() + (request.ignore_eos ? 0 : request.eos_token_ids.size()), lane);
  if (!request.transform.any(request.temperature)) return;
  Transform transform = request.transform;
  transform.masked_ids = request.forbidden_ids();
  check_processors(transform, lane);
}

void DeviceArrays::check_processors(const Transform& transform, const std::string& lane) const {
  if (sizes_.num_biased == 0) {
    refuse("the " + lane + " lane has no arrays for filters and penalties: give DeviceArrays num_biased");
  }
  if (transform.logit_bias.size() > static_cast<size_t>(sizes_.num_biased)) {
    refuse("logit_bias has " + std::to_string(transform.logit_bias.size()) + " ids; the " + lane +
           " lane takes " + std::to_string(sizes_.num_biased) + ": pass fewer");
  }
  if (transform.min_tokens > 0 && transform.masked_ids.size() > sizes_.max_masked()) {
    refuse("min_tokens forbids " + std::to_string(transform.masked_ids.size()) +
           " end-of-text and stop ids; the " + lane + " lane takes " + std::to_string(sizes_.max_masked()) +
           ": pass fewer");
  }
}

void DeviceArrays::check_logprobs(const State& state, const std::string& lane) const {
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (state.running(slot)) check_logprobs(state.num_logprobs[slot], lane);
  }
}

void DeviceArrays::check_logprobs(int num_logprobs, const std::string& lane) const {
  if (std::min(num_logprobs, sizes_.vocab_size) > sizes_.max_logprobs) {
    refuse("log-probabilities of " + std::to_string(num_logprobs) + " likeliest tokens; the " + lane +
           " lane reports " + (sizes_.max_logprobs < 0 ? "none" : std::to_string(sizes_.max_logprobs)) +
           ": give DeviceArrays max_logprobs, or ask for fewer");
  }
}

void DeviceArrays::add_rows(const State& state, int begin, int end, bool processed, Staging* staging,
                            std::vector<Copy>* copies) const {
  const auto slots = static_cast<size_t>(end - begin);
  const auto first = static_cast<size_t>(begin);
  for (const ArrayField& field : array_fields()) {
    if (field.write == nullptr || !field.exists(sizes_)) continue;
    if (field.part == ArrayPart::kProcessors && !processed) continue;
    const size_t columns = field.columns(sizes_), row = columns * field.element;
    char* const rows = staging->take<char>(slots * row);
    std::fill_n(rows, slots * row, 0);
    for (size_t i = 0; i < slots && columns > 0; ++i) {
      field.write(state, begin + static_cast<int>(i), columns, rows + i * row);
    }
    copies->push_back({at_.*field.address + first * row, address(rows), slots * row});
  }
  for (size_t b = first; b < first + slots; ++b) {
    const auto length = static_cast<size_t>(state.prompt_len[b]);
    if (length == 0) continue;
    const size_t at = b * static_cast<size_t>(sizes_.capacity);
    int32_t* const prompt = staging->take<int32_t>(length);
    std::copy_n(state.token_ids.data() + at, length, prompt);
    copies->push_back({at_.token_ids + at * 4, address(prompt), length * 4});
  }
}

std::vector<Copy> DeviceArrays::upload(const State& state, bool processed) {
  const auto slots = static_cast<size_t>(sizes_.num_slots);
  std::vector<Copy> copies;
  staging_.clear();
  add_rows(state, 0, sizes_.num_slots, processed, &staging_, &copies);
  // Last: a slot whose upload broke off does not run.
  int32_t* const idle = staging_.take<int32_t>(slots);
  std::fill(idle, idle + slots, static_cast<int32_t>(FinishReason::kIdle));
  copies.push_back({at_.joining, address(idle), slots * 4});
  int32_t* const reasons = staging_.take<int32_t>(slots);
  for (size_t b = 0; b < slots; ++b) reasons[b] = static_cast<int32_t>(state.finish_reason[b]);
  copies.push_back({at_.finish_reason, address(reasons), slots * 4});
  VerdictRing(ring(), sizes_.ring_size, sizes_.num_slots, state.longest_gamma).clear();
  logprob_ring().clear();

  const auto gamma = static_cast<size_t>(state.longest_gamma);
  host_lengths_ = staging_.take<int32_t>(slots);
  host_windows_ = staging_.take<int32_t>(slots * gamma);
  host_logits_ =
      takes_host_logits() ? staging_.take<float>(slots * gamma * sizes_.draft_vocab_size) : nullptr;
  return copies;
}

void DeviceArrays::share_upload() { staging_.clear(); }

std::vector<DeviceArrays::Pass> DeviceArrays::prefill(const std::vector<int64_t>& starts,
                                                      const std::vector<int64_t>& ends) {
  int64_t total = 0;
  for (const int64_t end : ends) total += passes(end, sizes_.prefill_chunk);  // at the most
  int32_t* const nothing = staging_.take<int32_t>(2);
  nothing[0] = nothing[1] = 0;
  int32_t* range = staging_.take<int32_t>(2 * static_cast<size_t>(total));
  std::vector<Pass> result;
  // Every row but the pass's own is empty.
  std::vector<Copy> before;
  for (size_t b = 0; b < ends.size(); ++b) before.push_back({at_.chunk + b * 8, address(nothing), 8});
  for (size_t b = 0; b < ends.size(); ++b) {
    const CUdeviceptr row = at_.chunk + b * 8;
    for (int64_t start = starts[b]; start < ends[b]; start = range[1], range += 2) {
      const int64_t end = sizes_.pass_end(start, ends[b]);
      range[0] = static_cast<int32_t>(start);
      range[1] = static_cast<int32_t>(end);
      before.push_back({row, address(range), 8});
      result.push_back({static_cast<int>(b), end == ends[b], std::move(before)});
      before.clear();
    }
    if (starts[b] < ends[b]) before.push_back({row, address(nothing), 8});
  }
  return result;
}

std::vector<Copy> DeviceArrays::window_from(const DeviceArrays& draft, int gamma, bool keep_logits,
                                            bool processed) const {
  const auto slots = static_cast<size_t>(sizes_.num_slots);
  std::vector<Copy> copies = {
      {at_.num_draft_tokens, draft.at_.num_draft_tokens, slots * 4},
      {at_.draft_token_ids, draft.at_.draft_token_ids, slots * gamma * 4},
  };
  if (keep_logits) {
    // All rows: which of them the window is, only the device knows.
    const size_t num_rows = slots * 2 * gamma;
    copies.push_back({at_.draft_logits, draft.at_.draft_logits, num_rows * sizes_.draft_vocab_size * 4});
    if (processed) {
      copies.push_back({at_.kept_thresholds, draft.at_.kept_thresholds, num_rows * 4});
    }
  }
  return copies;
}

std::vector<Copy> DeviceArrays::window_from(State* state, bool keep_logits) {
  State& s = *state;
  // Staging may be reused once a verdict behind its copies was read. An empty round has no verdict.
  bool is_empty = true;
  for (int b = 0; b < s.num_slots; ++b) is_empty = is_empty && !s.running(b);
  if (is_empty) return {};
  const auto slots = static_cast<size_t>(sizes_.num_slots);
  const auto gamma = static_cast<size_t>(s.longest_gamma);
  const auto vocab = static_cast<size_t>(sizes_.draft_vocab_size);
  std::vector<Copy> copies = {
      {at_.num_draft_tokens, address(host_lengths_), slots * 4},
      {at_.draft_token_ids, address(host_windows_), slots * gamma * 4},
  };
  for (int b = 0; b < s.num_slots; ++b) {
    const int length = s.running(b) ? s.num_draft_tokens[b] : 0;
    const bool is_bad = s.running(b) && s.bad_draft[b] >= 0;
    host_lengths_[b] = length + (is_bad ? 1 : 0);
    std::copy_n(s.window(b), length, host_windows_ + b * gamma);
    if (is_bad) host_windows_[b * gamma + length] = kPlaceholderTokenId;  // as a draft on a device says it
    if (!keep_logits || vocab == 0) continue;
    const int64_t first = s.committed[b] + s.pending[b];
    for (int j = 0; j < length; ++j) {
      float* const row = host_logits_ + (b * gamma + j) * vocab;
      std::copy_n(s.draft_row(b, first + j), vocab, row);
      // Here a position's row is found by the gamma of the run, there by gamma_max.
      const size_t to = b * 2 * gamma + (first + j) % (2 * gamma);
      copies.push_back({at_.draft_logits + to * vocab * 4, address(row), vocab * 4});
    }
  }
  return copies;
}

std::vector<Copy> DeviceArrays::verdict_from(const DeviceArrays& target) const {
  const auto slots = static_cast<size_t>(sizes_.num_slots);
  return {
      {at_.token_ids, target.at_.token_ids, slots * sizes_.capacity * 4},
      {at_.committed, target.at_.committed, slots * 4},
      {at_.pending, target.at_.pending, slots * 4},
      {at_.finish_reason, target.at_.finish_reason, slots * 4},
  };
}

}  // namespace pearl
