// How often each token stands before a position, for penalties. Knows nothing of rounds: it gets what
// stands there and compares that with what it has counted, so that no rollback can be missed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/token_mask.h"

namespace pearl {

// All tokens before a position: `tokens`, then a window that is not among them yet.
struct Prefix {
  const int32_t* tokens;  // [length]
  int64_t length;
  int64_t prompt_len;
  const int32_t* window = nullptr;  // [window_len]
  int64_t window_len = 0;

  int64_t generated() const { return length + window_len - prompt_len; }
  Generated answer() const { return {tokens + prompt_len, length - prompt_len, window, window_len}; }
};

class TokenCounts {
 public:
  // Counts the prefix: what is counted already and differs goes, last first, then the rest comes.
  void sync(const Prefix& prefix) {
    if (prefix.prompt_len != prompt_len_) {
      resize(0);
      prompt_len_ = prefix.prompt_len;
    }
    const auto known = static_cast<int64_t>(tokens_.size());
    const int64_t first = std::min(known, prefix.length);
    int64_t same =
        std::mismatch(tokens_.begin(), tokens_.begin() + first, prefix.tokens).first - tokens_.begin();
    if (same == prefix.length) {
      const int64_t more = std::min(known - same, prefix.window_len);
      const auto at = tokens_.begin() + same;
      same += std::mismatch(at, at + more, prefix.window).first - at;
    }
    resize(static_cast<size_t>(same));
    for (int64_t i = same; i < prefix.length; ++i) push(prefix.tokens[i]);
    for (int64_t i = std::max<int64_t>(same - prefix.length, 0); i < prefix.window_len; ++i)
      push(prefix.window[i]);
  }

  const std::vector<int32_t>& distinct() const { return distinct_; }    // in order of first appearance
  int32_t generated(int32_t token) const { return generated_[token]; }  // times, the prompt's not counted

 private:
  void push(int32_t token) {
    if (static_cast<size_t>(token) >= all_.size()) {
      all_.resize(token + 1);
      generated_.resize(token + 1);
    }
    if (all_[token]++ == 0) distinct_.push_back(token);
    if (static_cast<int64_t>(tokens_.size()) >= prompt_len_) ++generated_[token];
    tokens_.push_back(token);
  }

  // Last in, first out: a token whose count falls to 0 is the last of the distinct ones.
  void resize(size_t length) {
    while (tokens_.size() > length) {
      const int32_t token = tokens_.back();
      tokens_.pop_back();
      if (static_cast<int64_t>(tokens_.size()) >= prompt_len_) --generated_[token];
      if (--all_[token] == 0) distinct_.pop_back();
    }
  }

  int64_t prompt_len_ = -1;
  std::vector<int32_t> tokens_;     // what is counted
  std::vector<int32_t> all_;        // [largest token + 1]
  std::vector<int32_t> generated_;  // [largest token + 1]
  std::vector<int32_t> distinct_;
};

}  // namespace pearl
