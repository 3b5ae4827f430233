// Everything that a round reads and writes: one struct of arrays [B] with one writer each.
// Plain memory: an event of the program orders the reader of a field behind its writer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/block_pool.h"
#include "cache/branches.h"
#include "cache/prefix_cache.h"
#include "coordinator/request.h"
#include "coordinator/ring.h"
#include "core/checks.h"
#include "core/executor.h"
#include "sampling/judge.h"

namespace pearl {

// How a draft came: from a row of a model; as one token and no distribution; or so, since the form of the
// answer has no other text there; or so, of rows of a model that were more than its own.
enum class DraftKind : uint8_t { kSampled, kCertain, kForced, kFilled };

struct State {
  // num_blocks, block_size: of the KV caches. has_prefixes: blocks are found again by their tokens.
  State(int num_slots, int gamma_max, int64_t capacity, int vocab_size, int draft_vocab_size, int num_blocks,
        int block_size, bool has_prefixes = false, int candidates = 1)
      : num_slots(num_slots),
        gamma_max(gamma_max),
        capacity(capacity),
        vocab_size(vocab_size),
        draft_vocab_size(draft_vocab_size),
        max_blocks(static_cast<int>((capacity + block_size - 1) / block_size)),
        candidates(candidates),
        draft_capacity(capacity),
        window_limit(gamma_max),
        request_id(num_slots),
        prompt_len(num_slots),
        max_total_len(num_slots),
        gamma(num_slots),
        adapts(num_slots),
        shares(num_slots),
        stop(num_slots),
        temperature(num_slots),
        seed(num_slots),
        stop_token_ids(num_slots),
        transform(num_slots),
        num_logprobs(num_slots, -1),
        num_prompt_logprobs(num_slots, -1),
        token_ids(static_cast<size_t>(num_slots) * capacity),
        committed(num_slots),
        pending(num_slots),
        finish_reason(num_slots, FinishReason::kIdle),
        round(num_slots),
        fed(num_slots),
        draft_token_ids(static_cast<size_t>(num_slots) * candidates * gamma_max),
        num_draft_tokens(num_slots),
        is_refused(num_slots),
        num_windows(num_slots, 1),
        draft_fed(num_slots),
        bad_draft(num_slots, -1),
        draft_kind(static_cast<size_t>(num_slots) * 2 * gamma_max),
        num_rows(num_slots),
        prompt_logprobs(num_slots),
        bad_prompt(num_slots, -1),
        num_own_words(num_slots),
        blocks(num_blocks, block_size),
        block_table(static_cast<size_t>(num_slots) * max_blocks, -1),
        num_held(num_slots),
        num_found(num_slots),
        num_known(num_slots),
        last_known(num_slots),
        own_words_(static_cast<size_t>(num_slots) * (gamma_max + 1)),
        draft_logits_(new float[window_at(num_slots, 0) * 2 * gamma_max * draft_vocab_size]),
        target_logits_(new float[window_at(num_slots, 0) * (gamma_max + 1) * vocab_size]) {
    if (has_prefixes) prefixes.emplace(&blocks);
  }

  // Of memory, as a double, which no product of sizes overflows.
  static double bytes(double num_slots, double gamma_max, double capacity, double vocab_size,
                      double draft_vocab_size, double block_size, double candidates = 1) {
    const double ids = capacity + capacity / block_size * candidates + gamma_max * candidates;
    const double logits = candidates * (2 * gamma_max * draft_vocab_size + (gamma_max + 1) * vocab_size);
    return num_slots * (4 * (ids + logits) + 1024);
  }

  bool running(int slot) const { return finish_reason[slot] == FinishReason::kRunning; }
  // Whether the slot's logits are changed before they are sampled.
  bool is_processed(int slot) const { return transform[slot].any(temperature[slot]); }
  bool idle(int slot) const { return !running(slot) && finish_reason[slot] != FinishReason::kFeeding; }
  int num_busy() const {
    int busy = 0;
    for (int slot = 0; slot < num_slots; ++slot) busy += idle(slot) ? 0 : 1;
    return busy;
  }
  void limit_windows() { window_limit = windows.empty() ? gamma_max : windows[num_busy()]; }

  // Tokens of prompt and answer at most.
  int64_t total_len(const Request& request) const {
    const auto length = static_cast<int64_t>(request.prompt_token_ids.size());
    return std::min(capacity - length, request.max_tokens) + length;
  }
  // Blocks behind those of the pool, which the windows but the first write to.
  int64_t branch_blocks() const {
    return Branches::num_blocks(num_slots, candidates, gamma_max + 1, blocks.block_size());
  }
  int64_t blocks_needed(const Request& request) const { return blocks.blocks_for(total_len(request)); }

  // Throws Failure(kRequest) for caches that cannot hold the blocks. owner: "the executor of the target lane
  // has", for the message.
  void check_caches(const std::string& owner, int num_blocks, int block_size) const {
    const int64_t needed = blocks.num_blocks() + branch_blocks();
    if (num_blocks >= needed && block_size == blocks.block_size()) return;
    refuse(owner + " " + std::to_string(num_blocks) + " KV blocks of " + std::to_string(block_size) +
           " tokens; " + std::to_string(needed) + " of " + std::to_string(blocks.block_size()) +
           " were asked for");
  }

  // Throws Failure(kRequest) for an executor that has no room for this state. lane: its name.
  void check_executor(const std::string& lane, const Executor& executor, int vocab, int64_t length) const {
    if (executor.num_slots() < num_slots * candidates || executor.max_model_len() < length) {
      refuse("the executor of the " + lane + " lane holds " + std::to_string(executor.num_slots()) +
             " sequences of " + std::to_string(executor.max_model_len()) + " tokens; " +
             std::to_string(num_slots * candidates) + " of " + std::to_string(length) + " were asked for");
    }
    check_caches("the executor of the " + lane + " lane has", executor.num_blocks(), executor.block_size());
    if (executor.vocab_size() != vocab) {
      refuse("the executor of the " + lane + " lane has a vocabulary of " +
             std::to_string(executor.vocab_size()) + "; the coordinator expects " + std::to_string(vocab));
    }
  }

  // Gives a slot that holds no blocks those of a request, known ones of its prompt first; false, and nothing
  // has changed, if too few are free.
  bool reserve(int slot, const Request& request) {
    const auto needed = static_cast<int>(blocks_needed(request));
    num_known[slot] = 0;
    last_known[slot] = PrefixCache::kRoot;
    if (prefixes && request.shares && request.num_prompt_logprobs < 0)
      find_known(slot, request.prompt_token_ids);
    num_found[slot] = num_held[slot] = num_known[slot];
    if (!blocks.reserve(needed - num_held[slot], table(slot) + num_held[slot])) {
      release(slot);
      return false;
    }
    num_held[slot] = needed;
    return true;
  }
  // Tokens of a prompt that the draft is fed before it drafts: none of one that it cannot follow.
  int64_t draft_prompt(int slot) const {
    return prompt_len[slot] - 1 < draft_capacity ? prompt_len[slot] - 1 : 0;
  }
  // Takes the blocks of a slot back, if it holds any.
  void release(int slot) {
    blocks.release(table(slot), num_held[slot]);
    std::fill_n(table(slot), num_held[slot], -1);
    num_held[slot] = 0;
  }

  // Whether a slot's prompt was looked for in the cache. All rows of one whose log-probabilities are wanted
  // have to be computed.
  bool looks(int slot) const { return prefixes && shares[slot] && num_prompt_logprobs[slot] < 0; }
  int64_t found_tokens(int slot) const { return num_found[slot] * int64_t{blocks.block_size()}; }
  // As results say it; -1: not looked for.
  int64_t cached_tokens(int slot) const { return looks(slot) ? found_tokens(slot) : -1; }
  // Before the first chunk of a prompt that joins: what other slots have fed since its blocks were reserved.
  void find_more(int slot) {
    if (!looks(slot)) return;
    find_known(slot, {tokens(slot), static_cast<size_t>(prompt_len[slot])});
    num_found[slot] = num_known[slot];
    fed[slot] = found_tokens(slot);
  }

  // Verify, and start for the last run: blocks of a slot that are full, whose tokens are final and whose rows
  // are written, and never again, in each cache that the slot uses, can be found by others. A score writes
  // from the last committed token on, a window from the one before it. moves: the slot goes on with the
  // blocks that others find, where these are not its own. On a device its table stays as it was copied.
  void make_known(int slot, bool moves = true) {
    if (!prefixes || num_held[slot] == 0 || !shares[slot]) return;
    if (finish_reason[slot] == FinishReason::kError) return;
    const bool is_judged = committed[slot] > prompt_len[slot];  // else the prompt may not be fed
    int64_t rows = fed[slot] < prompt_len[slot] ? fed[slot] : is_judged ? committed[slot] - 2 : 0;
    const bool has_draft = draft_reads(prompt_len[slot]);
    if (has_draft) rows = std::min(rows, draft_fed[slot]);
    for (int& known = num_known[slot]; (known + 1) * int64_t{blocks.block_size()} <= rows; ++known) {
      int32_t* block = table(slot) + known;
      const int32_t* first = tokens(slot) + known * int64_t{blocks.block_size()};
      const PrefixCache::Entry entry = prefixes->enter(last_known[slot], first, *block, has_draft);
      last_known[slot] = entry.id;
      if (moves) replace(block, entry.block);
    }
  }
  // Between runs: the rows of all blocks are void.
  void forget_prefixes() {
    for (int slot = 0; slot < num_slots; ++slot) release(slot);
    if (prefixes) prefixes->clear();
  }

  // A request takes a slot that is idle. is_fed: the program's prologue feeds its prompt, not the rounds.
  void fill(int slot, uint64_t id, const Request& request, bool is_fed) {
    const auto length = static_cast<int64_t>(request.prompt_token_ids.size());
    std::copy(request.prompt_token_ids.begin(), request.prompt_token_ids.end(), tokens(slot));
    request_id[slot] = id;
    prompt_len[slot] = length;
    max_total_len[slot] = total_len(request);
    gamma[slot] = request.gamma;
    adapts[slot] = request.adapts;
    shares[slot] = request.shares;
    stop[slot] = request.stop;
    temperature[slot] = request.temperature;
    seed[slot] = request.seed;
    stop_token_ids[slot] = request.stop_token_ids;
    if (!request.ignore_eos) {
      stop_token_ids[slot].insert(stop_token_ids[slot].end(), request.eos_token_ids.begin(),
                                  request.eos_token_ids.end());
    }
    transform[slot] = request.transform;
    transform[slot].masked_ids = request.forbidden_ids();
    num_logprobs[slot] = std::min(request.num_logprobs, vocab_size);
    num_prompt_logprobs[slot] = std::min(request.num_prompt_logprobs, vocab_size);
    prompt_logprobs[slot].clear();
    bad_prompt[slot] = -1;
    committed[slot] = length;
    pending[slot] = 0;
    finish_reason[slot] = is_fed ? FinishReason::kRunning : FinishReason::kFeeding;
    round[slot] = 0;
    fed[slot] = is_fed ? length : found_tokens(slot);
    num_draft_tokens[slot] = 0;
    is_refused[slot] = 0;
    num_windows[slot] = 1;
    draft_fed[slot] = 0;
    bad_draft[slot] = -1;
    num_rows[slot] = 0;
    num_own_words[slot] = 0;
  }
  void clear(int slot) {
    finish_reason[slot] = FinishReason::kIdle;
    prompt_len[slot] = 0;
  }

  int32_t* tokens(int slot) { return token_ids.data() + slot * capacity; }  // [capacity]
  int32_t* table(int slot) { return block_table.data() + static_cast<size_t>(slot) * max_blocks; }
  // number: of a window of the slot, here and below. Their first target row is that of window 0.
  int32_t* window(int slot, int number = 0) {  // [gamma_max]
    return draft_token_ids.data() + window_at(slot, number) * gamma_max;
  }
  float* target_rows(int slot, int number = 0) {  // [gamma_max + 1, V]
    return target_logits_.get() + window_at(slot, number) * (gamma_max + 1) * vocab_size;
  }
  // A ring by position: pending tokens of the last window (gamma - 1) and the new window (gamma) never meet.
  float* draft_row(int slot, int64_t position, int number = 0) {  // [Vd]
    const size_t row = window_at(slot, number) * 2 * gamma_max + position % (2 * gamma_max);
    return draft_logits_.get() + row * draft_vocab_size;
  }
  // Rows from that of a position to the end of the ring, behind which it goes on with position 0's.
  int rows_to_wrap(int64_t position) const {
    return 2 * gamma_max - static_cast<int>(position % (2 * gamma_max));
  }

  // How the draft of a position came: set beside it, by draft.
  DraftKind& kind(int slot, int64_t position) {
    return draft_kind[static_cast<size_t>(slot) * 2 * gamma_max + position % (2 * gamma_max)];
  }
  // Of the first `count` tokens behind the committed ones, drafts: the places of those of a kind.
  void find_drafts(int slot, DraftKind wanted, int64_t count, std::vector<int32_t>* places) {
    places->clear();
    for (int32_t i = 0; i < count; ++i) {
      if (kind(slot, committed[slot] + i) == wanted) places->push_back(i);
    }
  }
  // What the draft of a position was drawn from; nullptr: it was certain.
  const float* judged_row(int slot, int64_t position) {
    return kind(slot, position) == DraftKind::kSampled ? draft_row(slot, position) : nullptr;
  }
  int32_t* own_words(int slot) { return own_words_.data() + static_cast<size_t>(slot) * (gamma_max + 1); }
  int64_t room(int slot) const {
    return std::min(max_total_len[slot], draft_capacity) - committed[slot] - pending[slot];
  }
  // The longest window that a slot which runs may have now, but for tokens that a form forces.
  int32_t window_room(int slot) const {
    const int32_t wanted = adapts[slot] ? std::min(gamma[slot], window_limit) : gamma[slot];
    return static_cast<int32_t>(std::clamp<int64_t>(room(slot), 0, wanted));
  }
  // And with these, which cost the drafter nothing. One less than there is place for: the target then feeds
  // as many rows as share a pass over its weights.
  int32_t forced_room(int slot) const {
    const int32_t drafted = window_room(slot), most = std::max(gamma_max - 1, drafted);
    return drafted == 0 ? 0 : static_cast<int32_t>(std::clamp<int64_t>(room(slot), drafted, most));
  }

  const int num_slots;  // B
  const int gamma_max;
  const int64_t capacity;      // tokens of a sequence, prompt included
  const int vocab_size;        // V, the target's
  const int draft_vocab_size;  // Vd; the draft samples ids below min(V, Vd) only
  const int max_blocks;        // of a sequence: those of `capacity` tokens
  const int candidates;        // K, windows of a sequence at most, beside one another

  int64_t draft_capacity;  // tokens of a sequence that the draft can be fed: past them nothing is drafted

  // Set by start.
  JudgeKind judge = JudgeKind::kRejection;
  int longest_gamma = 0;  // of the run; 0 without a draft

  // Set by start, then by verify.
  std::vector<int32_t> windows;  // [B + 1] the longest window while so many slots are busy; none: no limit
  int window_limit;              // of the next round

  // Set by fill: by start, and by verify for a request that joins.
  std::vector<uint64_t> request_id;    // [B]
  std::vector<int64_t> prompt_len;     // [B] 0 in an idle slot
  std::vector<int64_t> max_total_len;  // [B] <= capacity; no position at or past it is fed or judged
  std::vector<int32_t> gamma;          // [B] the longest window wanted
  std::vector<char> adapts;            // [B] whether `window_limit` is for this one too
  std::vector<char> shares;            // [B] whether drafters may mix it with other requests
  std::vector<StopRule> stop;          // [B] of windows that a model drafts
  std::vector<float> temperature;      // [B] 0 = greedy
  std::vector<uint64_t> seed;          // [B]
  std::vector<std::vector<int32_t>> stop_token_ids;  // [B][] EOS ids (unless ignored) and stop ids
  std::vector<Transform> transform;                  // [B] what is done to logits before they are sampled
  std::vector<int32_t> num_logprobs;         // [B] likeliest tokens reported with each token; -1: nothing
  std::vector<int32_t> num_prompt_logprobs;  // [B] the same, of the prompt's tokens

  // Set by fill, then by verify. token_ids[b, :committed + pending] holds both kinds.
  std::vector<int32_t> token_ids;           // [B, capacity]
  std::vector<int64_t> committed;           // [B] final tokens
  std::vector<int64_t> pending;             // [B] drafted after them, not judged yet
  std::vector<FinishReason> finish_reason;  // [B]
  std::vector<int32_t> round;               // [B] that is judged next; 0 has the prompt's row only
  std::vector<int64_t> fed;                 // [B] tokens of the prompt that both models have been fed
  int feeding = -1;                         // the slot whose prompt goes on in this round, or -1

  // Set by draft. The window follows token committed + pending.
  std::vector<int32_t> draft_token_ids;   // [B, K, gamma_max]
  std::vector<int32_t> num_draft_tokens;  // [B] length of each window, 0..gamma
  std::vector<char> is_refused;           // [B] whether a rule ended the window before its first row
  std::vector<int32_t> num_windows;       // [B] 1..K, which begin with different tokens
  std::vector<int64_t> draft_fed;         // [B] tokens that the draft's cache holds, beginning with the first
  std::vector<int64_t> bad_draft;         // [B] the position whose logits could not be used, or -1

  std::vector<DraftKind> draft_kind;  // [B, 2 * gamma_max] by position, as draft_row

  // Set by score.
  std::vector<int32_t> num_rows;  // [B] rows of target_rows; row r is for position committed + r

  // Set by fill, then by prefill and score as the prompt goes in.
  std::vector<std::vector<Logprob>> prompt_logprobs;  // [B][] as RoundResult's
  std::vector<int64_t> bad_prompt;  // [B] the position whose logits could not be used, or -1

  // Set by verify, for drafters that ask for them.
  bool keeps_own_words = false;        // set by the coordinator, once
  std::vector<int32_t> num_own_words;  // [B] of own_words: the last committed token of the round, and what
                                       // the target would say behind it if the rejected drafts stood

  // Set by start, and by verify between rounds: a slot holds the blocks of its request from before fill until
  // after its end.
  BlockPool blocks;
  std::vector<int32_t> block_table;  // [B, max_blocks] KV blocks in order, in both models' caches; -1 behind
  std::vector<int32_t> num_held;     // [B] blocks of the slot
  std::vector<int32_t> num_found;    // [B] of these, at the front: whose rows were there before the request

  // Set by the coordinator: blocks that are found again by their tokens; none: each request feeds all of its
  // prompt.
  std::optional<PrefixCache> prefixes;
  bool draft_caches = false;         // by start: whether the run drafts with a KV cache
  std::vector<int> num_known;        // [B] blocks of the slot that others can find
  std::vector<uint64_t> last_known;  // [B] the entry of the last of them

 private:
  size_t window_at(int slot, int number) const { return static_cast<size_t>(slot) * candidates + number; }
  // Whether a draft with a cache of its own follows a sequence with such a prompt.
  bool draft_reads(int64_t length) const { return draft_caches && length - 1 < draft_capacity; }
  // Blocks at the front of a prompt, behind those that the slot knows: the last token is always fed.
  void find_known(int slot, std::span<const int32_t> prompt) {
    const int64_t size = blocks.block_size(), length = static_cast<int64_t>(prompt.size());
    for (int& known = num_known[slot]; (known + 1) * size < length; ++known) {
      const auto entry = prefixes->find(last_known[slot], prompt.data() + known * size, draft_reads(length));
      if (!entry) return;
      last_known[slot] = entry->id;
      replace(table(slot) + known, entry->block);
    }
  }
  // In a table: another block for the one that is there, if one is.
  void replace(int32_t* place, int32_t block) {
    if (*place == block) return;
    blocks.share(block);
    if (*place >= 0) blocks.release(place, 1);
    *place = block;
  }

  std::vector<int32_t> own_words_;          // [B, gamma_max + 1]
  std::unique_ptr<float[]> draft_logits_;   // [B, K, 2 * gamma_max, Vd], set by draft
  std::unique_ptr<float[]> target_logits_;  // [B, K, gamma_max + 1, V], set by prefill and score
};

}  // namespace pearl
