#include "cuda/memory/processor_arrays.h"

#include <algorithm>

#include "core/checks.h"

namespace pearl {

std::map<std::string, CUdeviceptr*> ShapingArrays::places() {
  std::map<std::string, CUdeviceptr*> places;
#define PEARL_MEMBER(name) places[#name] = &at_.name;
  PEARL_SHAPING(PEARL_MEMBER)
#undef PEARL_MEMBER
  return places;
}

void ShapingArrays::check(const Request& request, const std::string& lane) const {
  if (!is_shaped(request)) return;
  Transform transform = request.transform;
  transform.masked_ids = request.forbidden_ids();
  check(transform, lane);
}

void ShapingArrays::check(const Transform& transform, const std::string& lane) const {
  if (!exist()) {
    refuse("the " + lane + " lane has no arrays for filters and penalties: give DeviceArrays num_biased");
  }
  if (transform.logit_bias.size() > static_cast<size_t>(sizes_.num_biased)) {
    refuse("logit_bias has " + std::to_string(transform.logit_bias.size()) + " ids; the " + lane +
           " lane takes " + std::to_string(sizes_.num_biased) + ": pass fewer");
  }
  if (transform.min_tokens > 0 && transform.masked_ids.size() > static_cast<size_t>(sizes_.num_masked)) {
    refuse("min_tokens forbids " + std::to_string(transform.masked_ids.size()) +
           " end-of-text and stop ids; the " + lane + " lane takes " + std::to_string(sizes_.num_masked) +
           ": pass fewer");
  }
}

void ShapingArrays::add_rows(const State& state, int begin, int end, Staging* staging,
                             std::vector<Copy>* copies) const {
  const auto first = static_cast<size_t>(begin);
  const auto slots = static_cast<size_t>(end - begin);
  const auto masked = static_cast<size_t>(sizes_.num_masked);
  const auto biased = static_cast<size_t>(sizes_.num_biased);
  const Transform off;
  const auto transform = [&](size_t row) -> const Transform& {
    const int slot = begin + static_cast<int>(row);
    return state.idle(slot) || !is_shaped(state, slot) ? off : state.transform[slot];
  };
  const auto add = [&](CUdeviceptr to, size_t columns, auto empty, const auto& write) {
    using T = decltype(empty);
    T* const from = staging->take<T>(slots * columns);
    std::fill(from, from + slots * columns, empty);
    for (size_t row = 0; row < slots; ++row) write(transform(row), from + row * columns);
    copies->push_back({to + first * columns * sizeof(T), address(from), slots * columns * sizeof(T)});
  };
  add(at_.repetition_penalty, 1, 1.0f, [](const Transform& t, float* to) { *to = t.repetition_penalty; });
  add(at_.frequency_penalty, 1, 0.0f, [](const Transform& t, float* to) { *to = t.frequency_penalty; });
  add(at_.presence_penalty, 1, 0.0f, [](const Transform& t, float* to) { *to = t.presence_penalty; });
  add(at_.top_p, 1, 1.0f, [](const Transform& t, float* to) { *to = t.filters.top_p; });
  add(at_.min_p, 1, 0.0f, [](const Transform& t, float* to) { *to = t.filters.min_p; });
  add(at_.top_k, 1, int32_t{0}, [](const Transform& t, int32_t* to) { *to = t.filters.top_k; });
  add(at_.min_tokens, 1, int32_t{0}, [](const Transform& t, int32_t* to) {
    *to = static_cast<int32_t>(std::min<int64_t>(t.min_tokens, INT32_MAX));
  });
  add(at_.masked_ids, masked, int32_t{-1}, [](const Transform& t, int32_t* to) {
    if (t.min_tokens > 0) std::copy(t.masked_ids.begin(), t.masked_ids.end(), to);
  });
  add(at_.bias_ids, biased, int32_t{-1}, [](const Transform& t, int32_t* to) {
    for (const auto& [id, amount] : t.logit_bias) *to++ = id;
  });
  add(at_.bias, biased, 0.0f, [](const Transform& t, float* to) {
    for (const auto& [id, amount] : t.logit_bias) *to++ = amount;
  });
}

size_t ShapingArrays::staging_bytes(const ShapingSizes& sizes, size_t num_slots) {
  if (sizes.num_biased == 0) return 0;
  const size_t masked = Staging::bytes<int32_t>(num_slots * static_cast<size_t>(sizes.num_masked));
  const size_t biased = Staging::bytes<int32_t>(num_slots * static_cast<size_t>(sizes.num_biased));
  return 7 * Staging::bytes<int32_t>(num_slots) + masked + 2 * biased;
}

}  // namespace pearl
