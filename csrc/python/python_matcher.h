// The form of an answer, as an object of pearl_rt/grammar: what the thread of a lane calls.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/token_mask.h"
#include "python/arguments.h"
#include "python/gil.h"

namespace pearl {

// The matcher of pearl_rt/grammar, called by the thread of a lane.
class PythonMatcher : public FormMatcher {
  // What Python raises becomes a plain exception while the GIL is held.
  template <class Call>
  static auto called(Call call) {
    const WithGil hold;
    try {
      return call();
    } catch (const pybind11::error_already_set& error) {
      throw std::runtime_error(pybind11::str(error.value()).cast<std::string>());
    } catch (const pybind11::cast_error& error) {
      throw std::runtime_error(error.what());
    }
  }

 public:
  explicit PythonMatcher(pybind11::object matcher) : matcher_(std::move(matcher)) {}
  ~PythonMatcher() override {
    const WithGil hold;
    matcher_.release().dec_ref();
  }

  int64_t step(int64_t num_back, const int32_t* tokens, int64_t count, bool wants_mask, uint32_t* allowed,
               int64_t num_words) override {
    return called([&] {
      pybind11::list ids;
      for (int64_t i = 0; i < count; ++i) ids.append(tokens[i]);
      const pybind11::object words =
          wants_mask ? pybind11::object(pybind11::memoryview::from_memory(
                           allowed, num_words * static_cast<int64_t>(sizeof(uint32_t)), false))
                     : pybind11::none();
      const auto taken = matcher_.attr("step")(num_back, ids, words).cast<int64_t>();
      check_between("tokens that the matcher took in", taken, 0, count);
      return taken;
    });
  }
  std::vector<int32_t> forced() override {
    return called([&] { return matcher_.attr("forced")().cast<std::vector<int32_t>>(); });
  }

 private:
  pybind11::object matcher_;
};

// Of a grammar, as pearl_rt.grammar.matcher.Form: each native request has a matcher of its own.
inline std::shared_ptr<TokenMask> mask_from(const pybind11::object& grammar) {
  if (grammar.is_none()) return nullptr;
  if (!pybind11::hasattr(grammar, "matcher") || !pybind11::hasattr(grammar, "vocab_size")) {
    refuse("grammar is a " + pybind11::str(pybind11::type::of(grammar).attr("__name__")).cast<std::string>() +
           "; it must have matcher() and vocab_size, as pearl_rt.grammar.matcher.Form");
  }
  int64_t vocab_size = 0;
  try {
    vocab_size = grammar.attr("vocab_size").cast<int64_t>();
  } catch (const pybind11::cast_error&) {
    refuse("vocab_size of the grammar is no integer");
  }
  check_between("vocab_size of the grammar", vocab_size, 1, kMostIds);
  return std::make_shared<TokenMask>(std::make_unique<PythonMatcher>(grammar.attr("matcher")()),
                                     static_cast<int>(vocab_size));
}

}  // namespace pearl
