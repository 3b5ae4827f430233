// Which tokens may stand at a position of an answer that has a form: a JSON schema, a grammar. One of a
// request. A pure function of the tokens that were generated before the position; what is remembered saves
// time only. Knows a matcher by its calls; not grammars, and not rounds.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace pearl {

// The state of a form behind some tokens. One thread at a time.
class FormMatcher {
 public:
  virtual ~FormMatcher() = default;

  // Takes the last `num_back` tokens back, then takes in `tokens` up to one that the form does not allow, or
  // that ends the text -> how many. If it took all, and wants_mask: fills which tokens may follow, bit i % 32
  // of word i / 32. Throws std::exception where the form became too complex.
  virtual int64_t step(int64_t num_back, const int32_t* tokens, int64_t count, bool wants_mask,
                       uint32_t* allowed /*[num_words]*/, int64_t num_words) = 0;

  // Tokens that stand next in every text of the form. A text may be cut into others: these are likely.
  virtual std::vector<int32_t> forced() = 0;
};

// All tokens that were generated before a position: some of a sequence, then some of a window.
struct Generated {
  const int32_t* tokens;  // [count]
  int64_t count;
  const int32_t* window = nullptr;  // [window_len]
  int64_t window_len = 0;

  int64_t size() const { return count + window_len; }
  int32_t at(int64_t i) const { return i < count ? tokens[i] : window[i - count]; }
};

// From any thread: the lanes of target and draft ask in turns, and mostly for the same positions.
class TokenMask {
 public:
  TokenMask(std::unique_ptr<FormMatcher> matcher, int vocab_size);

  // Sets the logits of tokens that may not stand behind `before` to -inf. False, and nothing has changed:
  // `before` has the end of the text, or a token that may not stand there, and so no position behind it
  // counts.
  bool apply(const Generated& before, float* logits /*[vocab]*/, int vocab);

  // How many of `tokens` may follow `before`, one behind the other. The end of the text is none of them.
  int64_t num_allowed(const Generated& before, const int32_t* tokens, int64_t count);

  // Tokens that every text of the form has next; at most `most`.
  std::vector<int32_t> forced(const Generated& before, int64_t most);

  // Why no token may follow: the matcher gave up. "" while it works.
  std::string error() const;

 private:
  static constexpr int64_t kKept = 64;  // places: of two windows and what lies between, at the least

  // What was found behind so many tokens of path_; -1: nothing.
  struct Kept {
    int64_t mask_place = -1, forced_place = -1;
    std::vector<uint32_t> allowed;  // [num_words]
    std::vector<int32_t> forced;
  };

  // Tokens at the front of `before` that the matcher has taken in.
  int64_t shared(const Generated& before) const;
  // The matcher goes back to the first `same` tokens of `before`, and takes in the others and then `more`, as
  // many as may stand -> how many of them. wants_mask: of the place behind all of them.
  int64_t take(int64_t same, const Generated& before, const int32_t* more, int64_t count, bool wants_mask);
  // Whether `before` is the beginning of a text of the form, or all of it, and its mask is kept.
  bool keep_mask(const Generated& before);
  Kept& kept(int64_t place) { return kept_[place % kKept]; }

  const std::unique_ptr<FormMatcher> matcher_;
  const int64_t num_words_;
  mutable std::mutex mutex_;
  std::vector<int32_t> path_;  // what the matcher has taken in
  std::vector<Kept> kept_;     // [kKept] by place % kKept
  std::vector<int32_t> next_;  // tokens of one step
  std::string error_;
};

}  // namespace pearl
