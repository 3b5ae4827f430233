#include "native/scripted_executor.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>

#include "cache/block_pool.h"
#include "core/checks.h"
#include "core/event.h"
#include "cpu/machine/memory.h"

namespace pearl {

namespace {

constexpr int64_t kLongestDelayUs = 1'000'000;
constexpr std::chrono::microseconds kSpin{100};  // before a step's end: no sleep wakes to the microsecond

// splitmix64's finalizer.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

constexpr uint64_t kTapMask = (1u << 22) - 1;

// The hash of tokens that end with this one.
uint64_t after(uint64_t before, int32_t token) {
  return mix(before * 31 + static_cast<uint64_t>(token) + 0x9E3779B97F4A7C15u) | 1;
}

double unit(uint64_t x) { return static_cast<double>(mix(x) >> 11) * 0x1p-53; }

void wait_until(Clock::time_point end) {
  if (end - Clock::now() > kSpin) std::this_thread::sleep_until(end - kSpin);
  while (Clock::now() < end) cpu_pause();
}

const Script& checked(const Script& script) {
  check_between("vocab_size", script.vocab_size, 1, kMostIds);
  check_between("max_model_len", script.max_model_len, 1, kMostTokens);
  check_between("num_slots", script.num_slots, 1, kMostSlots);
  check_number("divergence", script.divergence, script.divergence >= 0 && script.divergence <= 1, "0 to 1");
  check_finite("scale", script.scale);
  check_between("delay_us", script.delay_min_us, 0, kLongestDelayUs);
  check_between("delay_us", script.delay_max_us, script.delay_max_us == 0 ? 0 : script.delay_min_us,
                kLongestDelayUs);
  check_number("step_us", script.step_us, script.step_us >= 0 && script.step_us <= kLongestDelayUs,
               "0 to 1000000");
  check_ids("head_ids", script.head_ids, script.vocab_size);
  const int64_t size = script.block_size ? script.block_size : BlockPool::size_for(script.max_model_len);
  const int64_t whole =
      BlockPool::blocks_of_slots(script.num_slots, script.max_model_len, static_cast<int>(size));
  const int64_t blocks = script.num_blocks ? script.num_blocks : whole;
  BlockPool::check(blocks, size);
  check_memory(static_cast<double>(blocks) * static_cast<double>(size * 8),
               "the cache of a scripted executor");
  return script;
}

}  // namespace

ScriptedExecutor::ScriptedExecutor(const Script& script)
    : script_(checked(script)),
      block_size_(script.block_size ? script.block_size : BlockPool::size_for(script.max_model_len)),
      blocks_per_slot_((script.max_model_len + block_size_ - 1) / block_size_),
      cache_((script.num_blocks ? script.num_blocks : script.num_slots * blocks_per_slot_) * block_size_),
      given_(script.num_slots),
      delays_(script.delay_seed) {}

void ScriptedExecutor::forward(const Segment* segments, int num_segments) {
  const Clock::time_point begin = Clock::now();
  const OneThread one_thread(&busy_);
  const int64_t call = calls_.fetch_add(1, std::memory_order_relaxed);
  delay();
  if (call == script_.throw_at) {
    if (script_.error == "memory") throw std::bad_alloc();
    if (script_.error == "foreign") throw 7;
    throw std::runtime_error(script_.error);
  }
  check_blocks(segments, num_segments);
  for (int i = 0; i < num_segments; ++i) feed(segments[i]);
  if (call == script_.nan_at && segments[num_segments - 1].num_logits > 0) {
    const Segment& last = segments[num_segments - 1];
    float* row = last.row(last.num_logits - 1, logits_size());
    row[logits_size() / 2] = std::numeric_limits<float>::quiet_NaN();
  }
  if (script_.step_us > 0) {
    wait_until(begin + std::chrono::nanoseconds(static_cast<int64_t>(script_.step_us * 1e3)));
  }
}

void ScriptedExecutor::copy_rows(int from, int to, int first, int count) {
  const OneThread one_thread(&busy_);
  check_between("a block that is copied", from, 0, num_blocks() - 1);
  check_between("a block that rows are copied to", to, 0, num_blocks() - 1);
  check_between("the first row", first, 0, block_size_);
  check_between("the number of rows", count, 0, block_size_ - first);
  uint64_t* const rows = cache_.data() + int64_t{to} * block_size_ + first;
  std::copy_n(cache_.data() + int64_t{from} * block_size_ + first, count, rows);
  std::fill(rows + count, rows - first + block_size_, 0);  // undefined: a read of them is seen
  copied_.fetch_add(count, std::memory_order_relaxed);
}

// Sequences may read one block; none may write what another reads.
void ScriptedExecutor::check_blocks(const Segment* segments, int num_segments) const {
  if (num_segments == 1) return;  // as one call makes it, with any positions: feed() checks them
  const auto blocks = [&](const Segment& s, int64_t first, int64_t end) {
    std::vector<int32_t> ids;
    const int64_t last = (end + block_size_ - 1) / block_size_;
    for (int64_t at = first / block_size_; s.block_table && at < last && at < s.num_blocks; ++at) {
      ids.push_back(s.block_table[at]);
    }
    return ids;
  };
  for (int i = 0; i < num_segments; ++i) {
    const int64_t end = segments[i].start + segments[i].num_tokens;
    for (const int32_t written : blocks(segments[i], segments[i].start, end)) {
      for (int j = 0; j < num_segments; ++j) {
        const std::vector<int32_t> read = blocks(segments[j], 0, segments[j].start + segments[j].num_tokens);
        if (j == i || std::find(read.begin(), read.end(), written) == read.end()) continue;
        throw std::logic_error("KV block " + std::to_string(written) + " was written, and is shared");
      }
    }
  }
}

void ScriptedExecutor::feed(const Segment& segment) {
  if (segment.slot < 0 || segment.slot >= script_.num_slots) throw std::out_of_range("no such slot");
  if (segment.start < 0 || segment.start > script_.max_model_len - segment.num_tokens) {
    throw std::out_of_range("a position past max_model_len was fed");
  }
  const int first_open = segment.num_tokens - segment.num_open;
  if (first_open < 0 || segment.num_open < 0) throw std::out_of_range("more open rows than tokens");
  uint64_t of_all = 0;  // the hash that ends with the last token
  for (int i = 0; i < segment.num_tokens; ++i) {
    const int64_t position = segment.start + i;
    const int32_t token = segment.token_ids[i];
    if (token < 0 || token >= script_.vocab_size) throw std::out_of_range("a token outside the vocabulary");
    if (i == first_open) of_all = hash_of_all(segment, i);
    const bool is_open = i >= first_open;
    // A row that others see has a hash which no row of a text has.
    const uint64_t here = is_open ? after(of_all, ~(i - first_open)) : after(before(segment, i), token);
    row(segment, position) = here;
    if (is_head()) given_[segment.slot] = here;
    for (int j = 0; segment.taps != nullptr && j < kTapSize; ++j) {
      segment.taps[i * kTapSize + j] = static_cast<float>(here >> (22 * j) & kTapMask);
    }
    const int wanted = i - (segment.num_tokens - segment.num_logits);
    if (wanted >= 0) write_row(here, segment.row(wanted, logits_size()));
    if (position > max_position_.load(std::memory_order_relaxed)) {
      max_position_.store(position, std::memory_order_relaxed);
    }
  }
  tokens_.fetch_add(segment.num_tokens, std::memory_order_relaxed);
}

// The hash that ends with the last token of a segment, whose first token that counts is this one.
uint64_t ScriptedExecutor::hash_of_all(const Segment& segment, int first) {
  uint64_t hash = before(segment, first);
  for (int i = first; i < segment.num_tokens; ++i) hash = after(hash, segment.token_ids[i]);
  return hash;
}

// The hash behind which a token is fed.
uint64_t ScriptedExecutor::before(const Segment& segment, int token) {
  const int64_t position = segment.start + token;
  uint64_t known = position == 0 ? 1 : row(segment, position - 1);
  if (known == 0) throw std::logic_error("KV row " + std::to_string(position - 1) + " was never written");
  if (!is_head()) return known;
  uint64_t fed = segment.features == nullptr ? given_[segment.slot] : 0;
  for (int j = 0; segment.features != nullptr && j < kTapSize; ++j) {
    fed |= static_cast<uint64_t>(segment.features[token * kTapSize + j]) << (22 * j);
  }
  if (position > 0 && known != fed) {
    throw std::logic_error("the taps of row " + std::to_string(position) + " are not those of its place");
  }
  return fed;
}

uint64_t& ScriptedExecutor::row(const Segment& segment, int64_t position) {
  const int64_t at = position / block_size_;
  int64_t block = segment.slot * blocks_per_slot_ + at;
  if (segment.block_table != nullptr) block = at < segment.num_blocks ? segment.block_table[at] : -1;
  if (block < 0 || block >= num_blocks()) throw std::out_of_range("a position without a KV block was fed");
  return cache_[block * block_size_ + position % block_size_];
}

void ScriptedExecutor::write_row(uint64_t prefix, float* logits) const {
  uint64_t key = mix(prefix + script_.rule * 0x9E3779B97F4A7C15u);
  if (script_.divergence > 0.0 && unit(key ^ 0xD1F) < script_.divergence) key = mix(key + 0xBAD);
  for (int i = 0; i < logits_size(); ++i) {
    const auto id = static_cast<uint64_t>(is_head() ? script_.head_ids[i] : i);
    logits[i] = static_cast<float>((2.0 * unit(key + id) - 1.0) * script_.scale);
  }
}

void ScriptedExecutor::delay() {
  if (script_.delay_max_us <= 0) return;
  const int64_t span = script_.delay_max_us - script_.delay_min_us + 1;
  const auto us = std::chrono::microseconds(script_.delay_min_us + static_cast<int64_t>(delays_() % span));
  if (us.count() >= 100) return std::this_thread::sleep_for(us);
  wait_until(Clock::now() + us);
}

}  // namespace pearl
