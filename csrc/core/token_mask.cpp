#include "core/token_mask.h"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <iterator>
#include <limits>

namespace pearl {

namespace {

constexpr int kWordBits = 32;

}  // namespace

TokenMask::TokenMask(std::unique_ptr<FormMatcher> matcher, int64_t vocab_size)
    : matcher_(std::move(matcher)), num_words_(num_words(vocab_size)), places_(kKept) {}

bool TokenMask::Place::allows(int32_t token) const {
  const auto word = static_cast<size_t>(token / kWordBits);
  return word < allowed.size() && (allowed[word] >> token % kWordBits & 1) != 0;
}

int64_t TokenMask::shared(const Generated& before) const {
  const int64_t most = std::min(static_cast<int64_t>(path_.size()), before.size());
  int64_t same = 0;
  while (same < most && path_[same] == before.at(same)) ++same;
  return same;
}

int64_t TokenMask::walk(int64_t same, const Generated& before, const int32_t* more, int64_t count,
                        int64_t wanted) {
  next_.clear();
  for (int64_t i = same; i < before.size(); ++i) next_.push_back(before.at(i));
  next_.insert(next_.end(), more, more + count);
  const auto asked = static_cast<int64_t>(next_.size());
  const int64_t num_back = static_cast<int64_t>(path_.size()) - same;
  path_.resize(static_cast<size_t>(same));
  for (Place& one : places_) {
    if (one.at > same) one.at = -1;
  }
  const Place& first = place(same);
  const bool is_known = first.at == same && (asked > 0 || first.has_forced);
  const int64_t skip = std::max<int64_t>(is_known ? 1 : 0, asked - (kKept - 2));
  const int64_t rows = std::max<int64_t>(asked - skip + 1, 0) + 1;
  masks_.resize(static_cast<size_t>(rows * num_words_));
  const FormMatcher::Walk found =
      matcher_->step(num_back, next_.data(), asked, skip, wanted - same, masks_.data(), rows);
  path_.insert(path_.end(), next_.begin(), next_.begin() + static_cast<ptrdiff_t>(found.taken));
  const uint32_t* row = masks_.data();
  const auto keep_mask = [&](Place* one) {
    one->allowed.assign(row, row + num_words_);
    one->has_mask = true;
    row += num_words_;
  };
  for (int64_t i = skip; i <= found.taken; ++i) {
    Place& one = place(same + i);
    one.at = same + i;
    one.is_fixed = std::find(found.fixed.begin(), found.fixed.end(), i) != found.fixed.end();
    one.has_mask = false;
    one.has_forced = !one.is_fixed || i == asked;
    one.forced.clear();
    if (one.is_fixed) keep_mask(&one);
    if (i == asked) one.forced = found.forced;
  }
  if (found.has_wanted) keep_mask(&place(wanted));
  return found.taken;
}

const TokenMask::Place* TokenMask::look(const Generated& before, bool needs_mask) {
  const int64_t same = shared(before), size = before.size();
  const Place& own = place(size);
  if (same == size && own.at == size && (needs_mask ? own.has_mask : own.has_forced)) return &own;
  const int64_t taken = walk(same, before, nullptr, 0, needs_mask || wants_masks_ ? size : -1);
  return same + taken == size ? &own : nullptr;
}

bool TokenMask::apply(const Generated& before, float* logits, int vocab) {
  const std::lock_guard<std::mutex> lock(mutex_);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const Place* own = nullptr;
  if (error_.empty()) {
    try {
      own = look(before, true);
      if (own == nullptr) return false;
      if (!own->is_fixed) wants_masks_ = true;
    } catch (const std::exception& error) {
      error_ = error.what();
    }
  }
  if (!error_.empty()) {
    std::fill_n(logits, vocab, kNever);
    return true;
  }
  const std::vector<uint32_t>& allowed = own->allowed;
  for (int first = 0; first < vocab; first += kWordBits) {
    const int64_t word = first / kWordBits;
    const uint32_t bits = word < num_words_ ? allowed[word] : 0;
    const int count = std::min(kWordBits, vocab - first);
    if (bits == ~uint32_t{0}) continue;
    if (bits == 0) {
      std::fill_n(logits + first, count, kNever);
      continue;
    }
    for (int i = 0; i < count; ++i) {
      if ((bits >> i & 1) == 0) logits[first + i] = kNever;
    }
  }
  return true;
}

bool TokenMask::leaves(const Generated& before, int32_t token) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty()) return false;
  try {
    const int64_t same = shared(before), size = before.size();
    const Place& own = place(size);
    const bool is_known = same == size && own.at == size;
    const auto length = static_cast<int64_t>(path_.size());
    bool stands = is_known && length > size && path_[static_cast<size_t>(size)] == token;
    if (!is_known || !(own.has_mask || stands)) {
      const int64_t reached = same + walk(same, before, &token, 1, size);
      if (reached < size) return false;
      stands = reached > size;
    }
    if (own.has_mask) stands = own.allows(token);
    if (!own.is_fixed) wants_masks_ = !stands;
    return stands;
  } catch (const std::exception& error) {
    error_ = error.what();
    return false;
  }
}

int64_t TokenMask::num_allowed(const Generated& before, const int32_t* tokens, int64_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty()) return 0;
  try {
    const int64_t size = before.size();
    int64_t same = shared(before);
    const auto length = static_cast<int64_t>(path_.size());
    while (same >= size && same < size + count && same < length && path_[same] == tokens[same - size]) ++same;
    if (same == size + count) return count;
    const int64_t known = std::max<int64_t>(same - size, 0);
    const int64_t taken = walk(same, before, tokens + known, count - known, wants_masks_ ? size + count : -1);
    return std::max<int64_t>(same + taken - size, 0);
  } catch (const std::exception& error) {
    error_ = error.what();
    return 0;
  }
}

std::vector<int32_t> TokenMask::forced(const Generated& before, int64_t most) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty() || most < 1) return {};
  try {
    const Place* own = look(before, false);
    if (own == nullptr) return {};
    const auto count = static_cast<ptrdiff_t>(std::min<int64_t>(std::ssize(own->forced), most));
    return {own->forced.begin(), own->forced.begin() + count};
  } catch (const std::exception& error) {
    error_ = error.what();
    return {};
  }
}

std::string TokenMask::error() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

}  // namespace pearl
