// Where the last tokens of a text stood before: chains of equal tokens and pairs of tokens, latest first.
// At most 20 bytes a token; an index that is full forgets its oldest tokens. Knows tokens, not who said them.
#pragma once

#include <cstdint>
#include <vector>

namespace pearl {

class LookupIndex {
 public:
  static constexpr int kMatches = 16;  // places that find looks at
  static constexpr int kLongest = 32;  // tokens that it compares
  static constexpr int32_t kGap = -1;  // in place of a token: nothing reaches across it

  struct Match {
    uint32_t next;  // the place behind it
    int length;     // tokens that agree, 1 to kLongest
  };

  // capacity: tokens that are kept.
  explicit LookupIndex(int64_t capacity);

  void clear();
  void append(int32_t token);  // or kGap
  uint32_t size() const { return size_; }
  int32_t at(uint32_t place) const { return tokens_[place & mask_]; }
  // Whether a token stands there.
  bool has(uint32_t place) const { return place != size_ && at(place) != kGap; }

  // Places where the last tokens before `end` stood, with what came next; those that agree in two tokens if
  // there are any, else in one. length: tokens before `end` that may be read. Latest first -> their number.
  int find(const int32_t* end, int64_t length, Match out[kMatches]) const;

  int64_t bytes() const;

 private:
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  static constexpr int kSteps = 64;  // of a chain, whose places may be of other pairs too

  bool is_kept(uint32_t place) const {  // with a token of the match before it
    return place != kNone && size_ - place < kept_ && size_ != place;
  }
  uint32_t bucket(uint32_t first, uint32_t second) const;
  void link(uint32_t place);
  void grow();
  int follow(const std::vector<uint32_t>& heads, const std::vector<uint32_t>& before, uint32_t key,
             const int32_t* end, int64_t length, int shortest, Match* out) const;

  const uint32_t mask_;  // capacity - 1
  uint32_t size_ = 0;    // tokens appended
  uint32_t kept_ = 0;    // of them in memory
  // By place, modulo the capacity; they grow with the text.
  std::vector<int32_t> tokens_;
  std::vector<uint32_t> before_one_, before_two_;  // the place before in the chain of what precedes this one
  std::vector<uint32_t> heads_one_, heads_two_;    // [a power of two] the latest place of each chain
};

}  // namespace pearl
