// What a caller gives, checked where it comes in: one refusal, which says the value and what is taken
// instead. Knows numbers and lists of ids; not what they are for.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/failure.h"

namespace pearl {

// Past these, products of sizes would not fit into the integers that they are kept in.
constexpr int64_t kMostSlots = 1 << 20;
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max() - 512;  // of a sequence
constexpr int64_t kMostIds = 1 << 24;                                       // of a vocabulary
constexpr int64_t kLongestWindow = 1 << 16;                                 // tokens

[[noreturn]] inline void refuse(const std::string& what) { throw Failure(FailureKind::kRequest, what); }

inline void check_between(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  const std::string found = std::string(name) + " is " + std::to_string(value) + "; it must be ";
  refuse(found + (value < least ? "at least " + std::to_string(least) : "at most " + std::to_string(most)));
}

inline void check_number(const char* name, double value, bool good, const char* wanted) {
  if (!good) refuse(std::string(name) + " is " + std::to_string(value) + "; it must be " + wanted);
}

inline void check_finite(const char* name, double value) {
  check_number(name, value, std::isfinite(value), "finite");
}

inline void check_ids(const char* name, const std::vector<int32_t>& ids, int64_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    refuse(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
           "; the vocabulary has ids 0 to " + std::to_string(vocab_size - 1));
  }
}

// Ids that may lie outside of a vocabulary, where they mean nothing.
inline void check_ids(const char* name, const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0) continue;
    refuse(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
           "; ids begin with 0");
  }
}

}  // namespace pearl
