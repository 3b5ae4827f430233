#include "drafters/lookup_index.h"

#include <algorithm>
#include <bit>

namespace pearl {

namespace {

constexpr size_t kFirstHeads = 256;
constexpr size_t kFirstTokens = 1024;

}  // namespace

LookupIndex::LookupIndex(int64_t capacity)
    : mask_(std::bit_ceil(static_cast<uint32_t>(std::max<int64_t>(capacity, 2))) - 1) {
  clear();
}

void LookupIndex::clear() {
  size_ = kept_ = 0;
  heads_one_.assign(kFirstHeads, kNone);
  heads_two_.assign(kFirstHeads, kNone);
}

uint32_t LookupIndex::bucket(uint32_t first, uint32_t second) const {
  const uint64_t key = (static_cast<uint64_t>(first) << 32 | second) * 0x9E3779B97F4A7C15u;
  return static_cast<uint32_t>(key >> 32) & static_cast<uint32_t>(heads_one_.size() - 1);
}

// The tokens before a place lead to it from now on.
void LookupIndex::link(uint32_t place) {
  before_one_[place & mask_] = before_two_[place & mask_] = kNone;
  if (kept_ < 1 || at(place) == kGap || at(place - 1) == kGap) return;
  const auto last = static_cast<uint32_t>(at(place - 1));
  uint32_t& one = heads_one_[bucket(0, last)];
  before_one_[place & mask_] = one;
  one = place;
  if (kept_ < 2 || at(place - 2) == kGap) return;
  uint32_t& two = heads_two_[bucket(static_cast<uint32_t>(at(place - 2)) + 1, last)];
  before_two_[place & mask_] = two;
  two = place;
}

void LookupIndex::grow() {
  const size_t held = tokens_.size();
  if (kept_ == held && held <= mask_) {
    const size_t more = std::min<size_t>(size_t{mask_} + 1, std::max(kFirstTokens, held + held / 4));
    tokens_.resize(more);
    before_one_.resize(more);
    before_two_.resize(more);
  }
  if (kept_ <= 4 * heads_one_.size()) return;
  heads_one_.assign(2 * heads_one_.size(), kNone);
  heads_two_.assign(heads_one_.size(), kNone);
  const uint32_t end = size_, kept = kept_;
  kept_ = 0;
  for (uint32_t place = end - kept; place != end; ++place) {
    link(place);
    ++kept_;
  }
}

void LookupIndex::append(int32_t token) {
  grow();
  tokens_[size_ & mask_] = token;
  kept_ = std::min(kept_, mask_);  // the oldest goes
  link(size_);
  ++size_;
  ++kept_;
}

int LookupIndex::follow(const std::vector<uint32_t>& heads, const std::vector<uint32_t>& before, uint32_t key,
                        const int32_t* end, int64_t length, int shortest, Match* out) const {
  int count = 0;
  uint32_t place = heads[key];
  for (int step = 0; step < kSteps && count < kMatches && is_kept(place); ++step) {
    const uint32_t oldest = size_ - kept_;
    const int64_t most = std::min<int64_t>({length, kLongest, static_cast<int64_t>(place - oldest)});
    int agree = 0;
    while (agree < most && at(place - 1 - agree) == end[-1 - agree]) ++agree;
    if (agree >= shortest) out[count++] = {place, agree};
    const uint32_t earlier = before[place & mask_];
    if (earlier == kNone || size_ - earlier <= size_ - place) break;  // it was overwritten
    place = earlier;
  }
  return count;
}

int LookupIndex::find(const int32_t* end, int64_t length, Match out[kMatches]) const {
  if (length < 1) return 0;
  const auto last = static_cast<uint32_t>(end[-1]);
  if (length > 1) {
    const uint32_t key = bucket(static_cast<uint32_t>(end[-2]) + 1, last);
    const int count = follow(heads_two_, before_two_, key, end, length, 2, out);
    if (count > 0) return count;
  }
  return follow(heads_one_, before_one_, bucket(0, last), end, length, 1, out);
}

int64_t LookupIndex::bytes() const {
  return static_cast<int64_t>(4 * (tokens_.capacity() + before_one_.capacity() + before_two_.capacity() +
                                   heads_one_.capacity() + heads_two_.capacity()));
}

}  // namespace pearl
