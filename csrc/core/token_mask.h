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

// The state of a form behind some tokens. One thread at a time. A call may cost more than what it finds, so
// that one step tells all that is known on its way. A place is behind so many of a step's tokens.
class FormMatcher {
 public:
  struct Walk {
    int64_t taken = 0;            // tokens that it took in
    std::vector<int64_t> fixed;   // places that have a mask: text is certain there
    bool has_wanted = false;      // behind those masks comes that of the place that was wanted
    std::vector<int32_t> forced;  // if it took all: tokens that stand next in every text. A text may be cut
                                  // into others: these are likely
  };

  virtual ~FormMatcher() = default;

  // Takes the last `num_back` tokens back, then takes in `tokens` up to one that the form does not allow, or
  // that ends the text, and looks at each place from `skip` on. Where text is certain a token that it takes
  // in may still be none that may stand: its mask says so, bit i % 32 of word i / 32. Where none is, those
  // that may stand are those that it takes in, and ends of text; a mask is made there if the place is
  // `wanted`, and no token behind it was taken in. Throws std::exception where the form became too complex.
  virtual Walk step(int64_t num_back, const int32_t* tokens, int64_t count, int64_t skip, int64_t wanted,
                    uint32_t* masks /*[rows, num_words]*/, int64_t rows) = 0;
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
  TokenMask(std::unique_ptr<FormMatcher> matcher, int64_t vocab_size);

  // Of a mask, 32 ids each.
  static int64_t num_words(int64_t vocab_size) { return (vocab_size + 31) / 32; }

  // Sets the logits of tokens that may not stand behind `before` to -inf. False, and nothing has changed:
  // `before` has the end of the text, or a token that may not stand there, and so no position behind it
  // counts.
  bool apply(const Generated& before, float* logits /*[vocab]*/, int vocab);

  // Whether apply() would leave the logit of `token` behind `before`, which is likely: mostly this is known
  // without a mask. False too where `before` cannot stand.
  bool leaves(const Generated& before, int32_t token);

  // How many of `tokens` may follow `before`, one behind the other, but for those that a mask forbids where
  // text is certain. The end of the text is none of them.
  int64_t num_allowed(const Generated& before, const int32_t* tokens, int64_t count);

  // Tokens that every text of the form has next; at most `most`.
  std::vector<int32_t> forced(const Generated& before, int64_t most);

  // Why no token may follow: the matcher gave up. "" while it works.
  std::string error() const;

 private:
  static constexpr int64_t kKept = 64;  // places: of two windows and what lies between, at the least

  // What was found behind so many tokens of path_.
  struct Place {
    int64_t at = -1;        // so many; -1: nothing was found
    bool is_fixed = false;  // text is certain: then there is a mask
    bool has_mask = false;
    bool has_forced = true;         // what stands next is known: nothing, unless text is certain
    std::vector<uint32_t> allowed;  // [num_words]
    std::vector<int32_t> forced;

    bool allows(int32_t token) const;
  };

  Place& place(int64_t at) { return places_[at % kKept]; }
  // Tokens at the front of `before` that the matcher has taken in.
  int64_t shared(const Generated& before) const;
  // The matcher goes back to the first `same` tokens of `before`, and takes in the others and then `more`, as
  // many as may stand -> how many of them. wanted: the place whose mask is made in any case, or -1.
  int64_t walk(int64_t same, const Generated& before, const int32_t* more, int64_t count, int64_t wanted);
  // What is found behind `before`; nullptr if it is no beginning of a text of the form.
  const Place* look(const Generated& before, bool needs_mask);

  const std::unique_ptr<FormMatcher> matcher_;
  const int64_t num_words_;
  mutable std::mutex mutex_;
  std::vector<int32_t> path_;    // what the matcher has taken in
  std::vector<Place> places_;    // [kKept] by place % kKept
  bool wants_masks_ = false;     // the last place where no text is certain needed its mask: so may the next
  std::vector<int32_t> next_;    // tokens of one step
  std::vector<uint32_t> masks_;  // of one step
  std::string error_;
};

}  // namespace pearl
