// Noise, sampling and judging on numpy arrays, for tests and for the reference decoder.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/vector_math.h"
#include "python/arguments.h"
#include "sampling/candidates/candidates.h"
#include "sampling/judge.h"
#include "sampling/logprobs.h"
#include "sampling/sampling.h"

namespace py = pybind11;

namespace pearl {

namespace {

using Rows = Array<float>;
using Ids = Array<int32_t>;

constexpr int64_t kMostWords = 1 << 26;
constexpr int64_t kLastPosition = int64_t{1} << 62;

py::array_t<uint32_t> philox(uint64_t seed, int64_t position, uint32_t purpose, uint32_t count) {
  check_between("count", count, 0, kMostWords);
  py::array_t<uint32_t> words(count);
  uint32_t* out = words.mutable_data();
  for (uint32_t index = 0; index < count; ++index) {
    out[index] = noise_words(seed, position, static_cast<Purpose>(purpose), index / 4).w[index % 4];
  }
  return words;
}

std::array<uint32_t, 4> philox_block(const std::array<uint32_t, 4>& counter,
                                     const std::array<uint32_t, 2>& key) {
  const PhiloxWords words = philox4x32_10(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return {words.w[0], words.w[1], words.w[2], words.w[3]};
}

template <typename In, float (*function)(In)>
py::array_t<float> mapped(const Array<In>& values) {
  py::array_t<float> result(values.size());
  for (py::ssize_t i = 0; i < values.size(); ++i) result.mutable_data()[i] = function(values.data()[i]);
  return result;
}

bool is_uniform(float u) { return u > 0.0f && u <= 1.0f; }
bool is_normal(float x) { return x >= std::numeric_limits<float>::min(); }
bool is_not_above_0(float x) { return x <= 0.0f; }

// The same, of values that the function is made for.
template <float (*function)(float), bool (*holds)(float)>
py::array_t<float> mapped_within(const Rows& values, const char* name, const char* wanted) {
  for (py::ssize_t i = 0; i < values.size(); ++i) {
    const float value = values.data()[i];
    if (!holds(value)) check_number(name, value, false, wanted);
  }
  return mapped<float, function>(values);
}

float gumbel_of_word(uint32_t word) { return gumbel_of(uniform(word)); }
float bound_of_word(uint32_t word) { return gumbel_bound(uniform(word)); }
float uniform_of_word(uint32_t word) { return uniform(word); }
float exponential(float u) { return exponential_of(u); }
float log_of(float x) { return log_f32(x); }
float exp_of(float x) { return exp_f32(x); }

// A row without NaN or +inf, and with an entry above -inf.
RowScan usable_row(const Rows& logits) {
  const RowScan scan = scan_row(logits.data(), row_size("logits", logits));
  if (!scan.usable) refuse("logits hold NaN, +inf or only -inf");
  return scan;
}

double row_sum(const Rows& logits, float temperature) {
  check_number("temperature", temperature, temperature > 0, "above 0");
  const RowScan scan = usable_row(logits);
  return exp_sum(logits.data(), static_cast<int>(logits.size()), scan.max, inverse_temperature(temperature));
}

int32_t sample_row(const Rows& logits, float temperature, uint64_t seed, int64_t position, uint32_t purpose) {
  return sample(logits.data(), row_size("logits", logits), temperature, seed, position,
                static_cast<Purpose>(purpose));
}

// target_logits [num_draft + has_bonus, vocab], draft_logits [num_draft, draft_vocab] or None, ids
// [num_draft].
std::tuple<int, int32_t, int> judge_rows(const Rows& target_logits, const std::optional<Rows>& draft_logits,
                                         const Ids& draft_token_ids, int64_t position, float temperature,
                                         uint64_t seed, const std::string& kind, bool is_certain) {
  const JudgeKind judged_by = judge_from(kind);
  if (draft_token_ids.ndim() != 1) refuse("draft_token_ids must be [num_draft]");
  check_between("the length of draft_token_ids", draft_token_ids.size(), 0, kLongestWindow);
  const auto num_draft = static_cast<int>(draft_token_ids.size());
  const int64_t num_rows = target_logits.ndim() == 2 ? target_logits.shape(0) : -1;
  if (num_rows != num_draft && num_rows != num_draft + 1) {
    throw std::invalid_argument("target_logits must be [num_draft (+ 1), vocab] with num_draft = " +
                                std::to_string(num_draft));
  }
  check_between("the vocabulary of target_logits", target_logits.shape(1), 1, kMostIds);
  check_between("position", position, 0, kLastPosition);
  JudgeArgs args{};
  args.target_logits = target_logits.data();
  args.draft_token_ids = draft_token_ids.data();
  args.num_draft = num_draft;
  args.has_bonus = num_rows > num_draft;
  args.vocab = static_cast<int>(target_logits.shape(1));
  args.position = position;
  args.temperature = temperature;
  args.seed = seed;
  args.kind = judged_by;
  std::vector<const float*> rows;
  if (draft_logits) {
    if (draft_logits->ndim() != 2 || draft_logits->shape(0) != num_draft || draft_logits->shape(1) < 1) {
      throw std::invalid_argument("draft_logits must be [num_draft, draft_vocab]");
    }
    args.draft_vocab =
        std::min(args.vocab, static_cast<int>(std::min<int64_t>(draft_logits->shape(1), kMostIds)));
    for (int row = 0; row < num_draft; ++row) rows.push_back(draft_logits->data(row, 0));
  } else if (is_certain) {
    rows.assign(num_draft, nullptr);
  } else if (args.kind == JudgeKind::kRejection && temperature > 0.0f && num_draft > 0) {
    throw std::invalid_argument("judging by rejection at temperature > 0 needs draft_logits");
  }
  args.draft_logits = rows.data();
  const Verdict verdict = judge(args);
  return {verdict.accept_len, verdict.next_token, verdict.bad_row};
}

std::vector<int32_t> draw_of_row(const Rows& logits, float temperature, uint64_t seed, int64_t position,
                                 uint32_t purpose, int count) {
  check_between("count", count, 1, kLongestWindow);
  const int32_t first = sample_row(logits, temperature, seed, position, purpose);
  if (first < 0) return {};
  std::vector<int32_t> ids(count);
  ids.resize(draw_candidates(logits.data(), row_size("logits", logits), temperature, seed, position,
                             static_cast<Purpose>(purpose), first, count, ids.data()));
  return ids;
}

std::tuple<int, int32_t> choose_of_rows(const Rows& target_row, const Rows& draft_row,
                                        const std::vector<int32_t>& draft_ids, int64_t position,
                                        float temperature, uint64_t seed, const std::string& kind) {
  const JudgeKind judged_by = judge_from(kind);
  check_between("the length of draft_ids", static_cast<int64_t>(draft_ids.size()), 1, kLongestWindow);
  const int vocab = row_size("target_row", target_row);
  const int draft_vocab = std::min(vocab, row_size("draft_row", draft_row));
  check_number("temperature", temperature, std::isfinite(temperature) && temperature >= 0,
               "0 (greedy) or above");
  Candidates candidates;
  const Choice choice = candidates.choose({target_row.data(), draft_row.data(), draft_ids.data(),
                                           static_cast<int>(draft_ids.size()), vocab, draft_vocab, position,
                                           temperature, seed, judged_by});
  return {choice.taken, choice.next_token};
}

// A Transformer of one slot with its request, for tests: what it remembers must not show.
class OneTransform {
 public:
  OneTransform(float temperature, Transform transform)
      : temperature_(temperature), transform_(std::move(transform)), transformer_(1) {
    check_number("temperature", temperature, std::isfinite(temperature) && temperature >= 0,
                 "0 (greedy) or above");
    check(transform_);
  }

  py::array_t<float> row(const Rows& logits, const std::vector<int32_t>& tokens, int64_t prompt_len,
                         const std::vector<int32_t>& window) {
    const int vocab = row_size("logits", logits);
    check_ids("tokens", tokens, vocab);
    check_ids("window", window, vocab);
    check_between("prompt_len", prompt_len, 0, static_cast<int64_t>(tokens.size()));
    const Prefix prefix{tokens.data(), static_cast<int64_t>(tokens.size()), prompt_len, window.data(),
                        static_cast<int64_t>(window.size())};
    const float* row = transformer_.copy(transform_, temperature_, 0, prefix, logits.data(), vocab);
    return py::array_t<float>(logits.size(), row);
  }

 private:
  const float temperature_;
  const Transform transform_;
  Transformer transformer_;
};

std::vector<std::tuple<int32_t, float, int32_t>> logprobs_of_row(const Rows& logits, int32_t token, int k) {
  usable_row(logits);
  const auto vocab = static_cast<int>(logits.size());
  check_between("token", token, 0, vocab - 1);
  check_between("k", k, 0, kMostIds);
  FilterScratch scratch;
  std::vector<Logprob> entries;
  append_logprobs(logits.data(), vocab, token, std::min(k, vocab), &scratch, &entries);
  std::vector<std::tuple<int32_t, float, int32_t>> result;
  for (const Logprob& entry : entries) result.emplace_back(entry.token_id, entry.logprob, entry.rank);
  return result;
}

}  // namespace

void bind_sampling(py::module_& m) {
  py::class_<OneTransform>(m, "Transform", "What a request does to rows; remembers counts between calls.")
      .def(py::init([](float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty,
                       float presence_penalty, float frequency_penalty,
                       std::vector<std::pair<int32_t, float>> logit_bias, int64_t min_tokens,
                       std::vector<int32_t> masked_ids) {
             return OneTransform(temperature, {min_tokens,
                                               std::move(masked_ids),
                                               std::move(logit_bias),
                                               repetition_penalty,
                                               frequency_penalty,
                                               presence_penalty,
                                               {top_k, top_p, min_p},
                                               {}});
           }),
           py::kw_only(), py::arg("temperature") = 0.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f,
           py::arg("min_p") = 0.0f, py::arg("repetition_penalty") = 1.0f, py::arg("presence_penalty") = 0.0f,
           py::arg("frequency_penalty") = 0.0f,
           py::arg("logit_bias") = std::vector<std::pair<int32_t, float>>{}, py::arg("min_tokens") = 0,
           py::arg("masked_ids") = std::vector<int32_t>{})
      .def("row", method(&OneTransform::row), py::arg("logits"), py::arg("tokens"), py::arg("prompt_len") = 0,
           py::arg("window") = std::vector<int32_t>{},
           "The row as it is sampled; the window follows the tokens.");
  m.def("logprobs", &logprobs_of_row, py::arg("logits"), py::arg("token"), py::arg("k"),
        "(id, logprob, rank) of the token, then of the k likeliest.");
  m.def("philox_block", &philox_block, py::arg("counter"), py::arg("key"),
        "One Philox4x32-10 block: 4 words.");
  m.def("philox", &philox, py::arg("seed"), py::arg("position"), py::arg("purpose"), py::arg("count"),
        "Noise words of indices 0 .. count - 1.");
  m.def("uniform", &mapped<uint32_t, uniform_of_word>, py::arg("words"), "uint32 -> fp32 in (0, 1].");
  m.def("gumbel", &mapped<uint32_t, gumbel_of_word>, py::arg("words"), "uint32 -> fp32 Gumbel variates.");
  m.def("gumbel_bound", &mapped<uint32_t, bound_of_word>, py::arg("words"),
        "What gumbel(words) never exceeds.");
  m.def(
      "exponential",
      [](const Rows& u) { return mapped_within<exponential, is_uniform>(u, "u", "above 0, up to 1"); },
      py::arg("u"), "-log(1 - u) for u in (0, 1].");
  m.def(
      "log", [](const Rows& x) { return mapped_within<log_of, is_normal>(x, "x", "normal and above 0"); },
      py::arg("x"), "log of normal x > 0 and +inf.");
  m.def(
      "exp", [](const Rows& x) { return mapped_within<exp_of, is_not_above_0>(x, "x", "0 or below"); },
      py::arg("x"), "exp of x <= 0; 0 below -87.");
  m.def("exp_sum", &row_sum, py::arg("logits"), py::arg("temperature"),
        "sum of exp((logit - max) / temperature).");
  m.def("sample", &sample_row, py::arg("logits"), py::arg("temperature"), py::arg("seed"),
        py::arg("position"), py::arg("purpose"),
        "The token of one row, or -1 if it holds NaN, +inf or only -inf.");
  m.def("draw_candidates", &draw_of_row, py::arg("logits"), py::arg("temperature"), py::arg("seed"),
        py::arg("position"), py::arg("purpose"), py::arg("count"),
        "So many different tokens of one row, drawn without replacement; fewer where fewer have a chance.");
  m.def("choose_candidate", &choose_of_rows, py::arg("target_row"), py::arg("draft_row"),
        py::arg("draft_ids"), py::arg("position"), py::arg("temperature"), py::arg("seed"), py::arg("kind"),
        "(taken, next_token) of candidates for one place; rows are [vocab].");
  m.def(
      "judge", &judge_rows, py::arg("target_logits"), py::arg("draft_logits").none(true),
      py::arg("draft_token_ids"), py::arg("position"), py::arg("temperature"), py::arg("seed"),
      py::arg("kind"), py::arg("is_certain") = false,
      "(accept_len, next_token, bad_row); one row of target_logits more than draft tokens is the bonus row.");
}

}  // namespace pearl
