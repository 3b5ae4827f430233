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

void TokenMask::move(int64_t same, const Generated& before) {
  const auto known = static_cast<int64_t>(path_.size());
  next_.clear();
  for (int64_t i = same; i < before.size(); ++i) next_.push_back(before.at(i));
  for (Kept& kept : kept_) {
    if (kept.place > same) kept.place = -1;
  }
  Kept& kept = kept_[before.size() % kKept];
  kept.place = -1;
  kept.allowed.resize(num_words_);
  path_.resize(static_cast<size_t>(same));
  const auto count = static_cast<int64_t>(next_.size());
  const int64_t taken =
      matcher_->step(known - same, next_.data(), count, true, kept.allowed.data(), num_words_);
  path_.insert(path_.end(), next_.begin(), next_.begin() + static_cast<ptrdiff_t>(taken));
  if (taken == count) kept.place = before.size();
}

bool TokenMask::sync(const Generated& before) {
  const auto known = static_cast<int64_t>(path_.size());
  const int64_t most = std::min(known, before.size());
  int64_t same = 0;
  while (same < most && path_[same] == before.at(same)) ++same;
  if (same == before.size() && kept_[same % kKept].place == same) return true;
  move(same, before);
  return static_cast<int64_t>(path_.size()) == before.size();
}

bool TokenMask::stand(const Generated& before) {
  if (!sync(before)) return false;
  if (static_cast<int64_t>(path_.size()) > before.size()) move(before.size(), before);
  return true;
}

bool TokenMask::apply(const Generated& before, float* logits, int vocab) {
  const std::lock_guard<std::mutex> lock(mutex_);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  if (error_.empty()) {
    try {
      if (!sync(before)) return false;
    } catch (const std::exception& error) {
      error_ = error.what();
    }
  }
  if (!error_.empty()) {
    std::fill_n(logits, vocab, kNever);
    return true;
  }
  const std::vector<uint32_t>& allowed = kept_[before.size() % kKept].allowed;
  for (int first = 0; first < vocab; first += kWordBits) {
    const int64_t word = first / kWordBits;
    const uint32_t bits = word < num_words_ ? allowed[word] : 0;
    const int count = std::min(kWordBits, vocab - first);
    if (bits == ~uint32_t{0}) continue;
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
    if (!stand(before)) return 0;
    next_.assign(tokens, tokens + count);
    const int64_t taken = matcher_->step(0, next_.data(), count, false, nullptr, 0);
    path_.insert(path_.end(), next_.begin(), next_.begin() + static_cast<ptrdiff_t>(taken));
    return taken;
  } catch (const std::exception& error) {
    error_ = error.what();
    return 0;
  }
}

std::vector<int32_t> TokenMask::forced(const Generated& before, int64_t most) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int32_t> tokens;
  if (!error_.empty()) return tokens;
  try {
    if (stand(before)) tokens = matcher_->forced();
  } catch (const std::exception& error) {
    error_ = error.what();
  }
  if (static_cast<int64_t>(tokens.size()) > most)
    tokens.resize(static_cast<size_t>(std::max<int64_t>(most, 0)));
  return tokens;
}

std::string TokenMask::error() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

}  // namespace pearl
