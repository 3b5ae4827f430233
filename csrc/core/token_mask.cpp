#include "core/token_mask.h"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>

namespace pearl {

namespace {

constexpr int kWordBits = 32;

}  // namespace

TokenMask::TokenMask(std::unique_ptr<FormMatcher> matcher, int vocab_size)
    : matcher_(std::move(matcher)), num_words_((vocab_size + kWordBits - 1) / kWordBits), kept_(kKept) {}

int64_t TokenMask::shared(const Generated& before) const {
  const int64_t most = std::min(static_cast<int64_t>(path_.size()), before.size());
  int64_t same = 0;
  while (same < most && path_[same] == before.at(same)) ++same;
  return same;
}

int64_t TokenMask::take(int64_t same, const Generated& before, const int32_t* more, int64_t count,
                        bool wants_mask) {
  next_.clear();
  for (int64_t i = same; i < before.size(); ++i) next_.push_back(before.at(i));
  next_.insert(next_.end(), more, more + count);
  const int64_t num_back = static_cast<int64_t>(path_.size()) - same;
  path_.resize(static_cast<size_t>(same));
  for (Kept& one : kept_) {
    if (one.mask_place > same) one.mask_place = -1;
    if (one.forced_place > same) one.forced_place = -1;
  }
  const auto asked = static_cast<int64_t>(next_.size());
  const int64_t place = same + asked;
  uint32_t* words = nullptr;
  if (wants_mask) {
    kept(place).mask_place = -1;
    kept(place).allowed.resize(num_words_);
    words = kept(place).allowed.data();
  }
  const int64_t taken = matcher_->step(num_back, next_.data(), asked, wants_mask, words, num_words_);
  path_.insert(path_.end(), next_.begin(), next_.begin() + static_cast<ptrdiff_t>(taken));
  if (wants_mask && taken == asked) kept(place).mask_place = place;
  return taken;
}

bool TokenMask::keep_mask(const Generated& before) {
  const int64_t same = shared(before), size = before.size();
  if (same == size && kept(size).mask_place == size) return true;
  return take(same, before, nullptr, 0, true) == size - same;
}

bool TokenMask::apply(const Generated& before, float* logits, int vocab) {
  const std::lock_guard<std::mutex> lock(mutex_);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  if (error_.empty()) {
    try {
      if (!keep_mask(before)) return false;
    } catch (const std::exception& error) {
      error_ = error.what();
    }
  }
  if (!error_.empty()) {
    std::fill_n(logits, vocab, kNever);
    return true;
  }
  const std::vector<uint32_t>& allowed = kept(before.size()).allowed;
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

int64_t TokenMask::num_allowed(const Generated& before, const int32_t* tokens, int64_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty()) return 0;
  try {
    const int64_t same = shared(before), known = before.size() - same;
    return std::max<int64_t>(take(same, before, tokens, count, false) - known, 0);
  } catch (const std::exception& error) {
    error_ = error.what();
    return 0;
  }
}

std::vector<int32_t> TokenMask::forced(const Generated& before, int64_t most) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty() || most < 1) return {};
  const int64_t same = shared(before), size = before.size();
  Kept& own = kept(size);
  if (same < size || own.forced_place != size) {
    try {
      const bool stands = same == size && static_cast<int64_t>(path_.size()) == size;
      if (!stands && take(same, before, nullptr, 0, false) < size - same) return {};
      own.forced = matcher_->forced();
      own.forced_place = size;
    } catch (const std::exception& error) {
      error_ = error.what();
      return {};
    }
  }
  std::vector<int32_t> tokens = own.forced;
  if (static_cast<int64_t>(tokens.size()) > most) tokens.resize(static_cast<size_t>(most));
  return tokens;
}

std::string TokenMask::error() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

}  // namespace pearl
