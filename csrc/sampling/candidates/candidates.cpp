#include "sampling/candidates/candidates.h"

#include <algorithm>
#include <limits>

#include "core/vector_math.h"
#include "sampling/rows.h"

namespace pearl {

namespace {

constexpr float kSmallest = -87.0f;  // of what exp_f32 keeps: below it a token has no chance
constexpr double kNothing = std::numeric_limits<float>::min();  // a mass below it has no inverse in fp32

// The largest keys so far, largest first; the lowest index wins ties.
class Largest {
 public:
  Largest(int count, int32_t* indices) : count_(count), indices_(indices), keys_(count) {}

  void offer(float value, int32_t index) {
    const int32_t key = ordered(value);
    if (key <= kOrderedMinusInfinity || (found_ == count_ && key <= keys_[found_ - 1])) return;
    int at = found_ < count_ ? found_++ : found_ - 1;
    for (; at > 0 && key > keys_[at - 1]; --at) {
      keys_[at] = keys_[at - 1];
      indices_[at] = indices_[at - 1];
    }
    keys_[at] = key;
    indices_[at] = index;
  }
  // Whether any of a block could be taken in.
  bool could_take(const float* bounds /*[kBlock]*/) const {
    return found_ < count_ || largest(bounds, kBlock) > keys_[found_ - 1];
  }
  int found() const { return found_; }

 private:
  const int count_;
  int32_t* const indices_;  // [count]
  std::vector<int32_t> keys_;
  int found_ = 0;
};

PEARL_CLONES void offer_keys(const float* logits, int vocab, float max, float inverse, uint64_t seed,
                             int64_t position, Purpose purpose, int32_t first_token, Largest* found) {
  uint32_t words[kBlock];
  float scaled[kBlock], keys[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    fill_words(words, seed, position, purpose, first);
    for (int i = 0; i < count; ++i) scaled[i] = (logits[first + i] - max) * inverse;
    for (int i = count; i < kBlock; ++i) scaled[i] = -kInfinity;
    for (int i = 0; i < kBlock; ++i) scaled[i] = select(scaled[i] < kSmallest, -kInfinity, scaled[i]);
    for (int i = 0; i < kBlock; ++i) keys[i] = scaled[i] + gumbel_bound(uniform(words[i]));
    if (!found->could_take(keys)) continue;
    for (int i = 0; i < kBlock; ++i) keys[i] = scaled[i] + gumbel_of(uniform(words[i]));
    for (int i = 0; i < count; ++i) {
      if (first + i != first_token) found->offer(keys[i], first + i);
    }
  }
}

// exp((logits - max) * inverse) -> their sum.
PEARL_CLONES double weigh(const float* logits, int vocab, float max, float inverse, float* weights) {
  for (int i = 0; i < vocab; ++i) weights[i] = exp_f32((logits[i] - max) * inverse);
  return exp_sum(logits, vocab, max, inverse);
}

PEARL_CLONES double sum_of(const float* weights, int vocab) {
  BlockSum sum;
  float terms[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    for (int i = 0; i < count; ++i) terms[i] = weights[first + i];
    for (int i = count; i < kBlock; ++i) terms[i] = 0.0f;
    sum.add(terms);
  }
  return sum.total();
}

// max(p - q, 0), both normalised, into p.
PEARL_CLONES void take_away(float* __restrict p, double p_sum, const float* __restrict q, double q_sum,
                            int vocab) {
  const auto p_scale = static_cast<float>(1.0 / p_sum), q_scale = static_cast<float>(1.0 / q_sum);
  for (int i = 0; i < vocab; ++i) {
    const float left = p[i] * p_scale - q[i] * q_scale;
    p[i] = select(left > 0.0f, left, 0.0f);
  }
}

// A token from p, by the exponential race argmax p / Exp(1); or -1 if p is 0.
PEARL_CLONES int32_t sample_left(const float* p, int vocab, uint64_t seed, int64_t position) {
  Best best = {ordered(0.0f), kPlaceholderTokenId};
  uint32_t words[kBlock];
  float keys[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    fill_words(words, seed, position, Purpose::kResidual, first);
    for (int i = 0; i < count; ++i) keys[i] = p[first + i] / exponential_of(uniform(words[i]));
    for (int i = count; i < kBlock; ++i) keys[i] = 0.0f;
    best.offer(keys, first);
  }
  return best.index;
}

// The uniform by which the candidate of a place in their order is accepted: one of its own.
float accept_uniform_of(uint64_t seed, int64_t position, int place) {
  const auto group = static_cast<uint32_t>(place / 4);
  return uniform(noise_words(seed, position, Purpose::kAccept, group).w[place % 4]);
}

}  // namespace

int draw_candidates(const float* logits, int vocab, float temperature, uint64_t seed, int64_t position,
                    Purpose purpose, int32_t first, int count, int32_t* out) {
  out[0] = first;
  if (count == 1) return 1;
  Largest found(count - 1, out + 1);
  if (temperature > 0.0f) {
    const float max = scan_row(logits, vocab).max;
    offer_keys(logits, vocab, max, inverse_temperature(temperature), seed, position, purpose, first, &found);
  } else {
    for (int i = 0; i < vocab; ++i) {
      if (i != first) found.offer(logits[i], i);
    }
  }
  return 1 + found.found();
}

Choice Candidates::choose(const CandidateArgs& args) {
  const RowScan scan = scan_row(args.target, args.vocab);
  const int32_t* const end = args.token_ids + args.num;
  const bool are_tokens =
      std::all_of(args.token_ids, end, [&](int32_t token) { return token >= 0 && token < args.vocab; });
  if (!scan.usable || !are_tokens) return {-1, kPlaceholderTokenId};
  if (args.kind == JudgeKind::kCoupled || !(args.temperature > 0.0f)) {
    const int32_t own = sample(args.target, args.vocab, args.temperature, args.seed, args.position,
                               target_purpose(args.kind));
    const int32_t* const at = std::find(args.token_ids, end, own);
    if (at == end) return {-1, own};
    return {static_cast<int>(at - args.token_ids), kPlaceholderTokenId};
  }
  const RowScan drafted = scan_row(args.draft, args.draft_vocab);
  if (!drafted.usable) return {-1, kPlaceholderTokenId};
  return try_in_turn(args, scan, drafted);
}

Choice Candidates::try_in_turn(const CandidateArgs& args, const RowScan& target, const RowScan& draft) {
  const float inverse = inverse_temperature(args.temperature);
  p_.resize(args.vocab);
  q_.assign(args.vocab, 0.0f);  // the draft cannot say what it has no entry for
  double p_sum = weigh(args.target, args.vocab, target.max, inverse, p_.data());
  double q_sum = weigh(args.draft, args.draft_vocab, draft.max, inverse, q_.data());
  for (int place = 0; place < args.num && q_sum >= kNothing; ++place) {
    const int32_t token = args.token_ids[place];
    const double p = p_[token], q = q_[token];
    const float u = accept_uniform_of(args.seed, args.position, place);
    if (p > 0.0 && u * q * p_sum <= p * q_sum) return {place, kPlaceholderTokenId};
    take_away(p_.data(), p_sum, q_.data(), q_sum, args.vocab);
    q_[token] = 0.0f;  // it was tried: the next one was drawn from the others
    p_sum = sum_of(p_.data(), args.vocab);
    q_sum = sum_of(q_.data(), args.vocab);
    if (p_sum < kNothing) break;  // p was q, but for rounding
  }
  const int32_t left = sample_left(p_.data(), args.vocab, args.seed, args.position);
  if (left != kPlaceholderTokenId) return {-1, left};
  return {-1, sample_scanned(args.target, args.vocab, target, inverse, args.seed, args.position,
                             Purpose::kResidual)};
}

}  // namespace pearl
