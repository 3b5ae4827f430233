// Why a request was refused or a run ended early.
#pragma once

#include <stdexcept>
#include <string>

namespace pearl {

enum class FailureKind {
  kRequest,   // the caller asked for what cannot be done
  kNumerics,  // NaN or infinite logits
  kResource,  // memory or cores ran out
  kExecutor,  // anything else that a forward pass threw
};

class Failure : public std::runtime_error {
 public:
  Failure(FailureKind kind, const std::string& what) : std::runtime_error(what), kind(kind) {}
  FailureKind kind;
};

}  // namespace pearl
