// The form of an answer, as an object of pearl_rt/grammar: what the thread of a lane calls.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
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
  PythonMatcher(pybind11::object matcher, int64_t vocab_size)
      : matcher_(std::move(matcher)), vocab_size_(vocab_size), num_words_(TokenMask::num_words(vocab_size)) {}
  ~PythonMatcher() override {
    const WithGil hold;
    matcher_.release().dec_ref();
  }

  Walk step(int64_t num_back, const int32_t* tokens, int64_t count, int64_t skip, int64_t wanted,
            uint32_t* masks, int64_t rows) override {
    return called([&] {
      pybind11::list ids;
      for (int64_t i = 0; i < count; ++i) ids.append(tokens[i]);
      const auto words = pybind11::memoryview::from_memory(
          masks, rows * num_words_ * static_cast<int64_t>(sizeof(uint32_t)), false);
      Walk found;
      std::tie(found.taken, found.fixed, found.has_wanted, found.forced) =
          matcher_.attr("step")(num_back, ids, skip, wanted, words).cast<Told>();
      check_between("tokens that the matcher took in", found.taken, 0, count);
      int64_t least = skip;
      for (const int64_t place : found.fixed) {
        check_between("place of the matcher where text is certain", place, least, found.taken);
        least = place + 1;
      }
      const bool is_fixed = !found.fixed.empty() && found.fixed.back() == wanted;
      if (found.has_wanted && (wanted != found.taken || is_fixed)) {
        refuse("the matcher made the mask of place " + std::to_string(wanted) + ", which is none of its own");
      }
      for (const int32_t id : found.forced) check_between("token that is forced", id, 0, vocab_size_ - 1);
      return found;
    });
  }

 private:
  using Told = std::tuple<int64_t, std::vector<int64_t>, bool, std::vector<int32_t>>;

  pybind11::object matcher_;
  const int64_t vocab_size_;
  const int64_t num_words_;
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
  return std::make_shared<TokenMask>(std::make_unique<PythonMatcher>(grammar.attr("matcher")(), vocab_size),
                                     vocab_size);
}

}  // namespace pearl
