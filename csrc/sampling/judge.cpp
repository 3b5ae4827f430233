#include "sampling/judge.h"

#include "core/checks.h"
#include "core/vector_math.h"
#include "sampling/rows.h"

namespace pearl {

namespace {

// A row as a distribution: exp((logit - max) * inverse) / sum.
struct Softmax {
  const float* logits;
  int vocab;
  float max;
  float inverse;
  double sum;

  PEARL_INLINE float weight(int index) const { return exp_f32((logits[index] - max) * inverse); }
};

Softmax softmax_of(const float* logits, int vocab, const RowScan& scan, float inverse) {
  return {logits, vocab, scan.max, inverse, exp_sum(logits, vocab, scan.max, inverse)};
}

// u <= p(x) / q(x), without the division; a token that the target cannot say never stands.
bool accepts(const Softmax& target, const Softmax& draft, int32_t token, float u) {
  const double target_weight = target.weight(token);
  const double draft_weight = token < draft.vocab ? draft.weight(token) : 0.0f;
  return target_weight > 0.0 && u * draft_weight * target.sum <= target_weight * draft.sum;
}

// The same of a draft that is all of q.
bool accepts_certain(const Softmax& target, int32_t token, float u) {
  const double target_weight = target.weight(token);
  return target_weight > 0.0 && u * target.sum <= target_weight;
}

// A token from norm(max(p - q, 0)) where all of q is on `certain`: that of p without it; or -1 if nothing is
// left there.
PEARL_CLONES int32_t sample_others(const Softmax& target, int32_t certain, uint64_t seed, int64_t position) {
  const auto target_scale = static_cast<float>(1.0 / target.sum);
  Best best = {ordered(0.0f), kPlaceholderTokenId};
  uint32_t words[kBlock];
  float keys[kBlock];
  for (int first = 0; first < target.vocab; first += kBlock) {
    const int count = target.vocab - first < kBlock ? target.vocab - first : kBlock;
    fill_words(words, seed, position, Purpose::kResidual, first);
    for (int i = 0; i < count; ++i) {
      const float wanted = target.weight(first + i) * target_scale;
      keys[i] = first + i == certain ? 0.0f : wanted / exponential_of(uniform(words[i]));
    }
    for (int i = count; i < kBlock; ++i) keys[i] = 0.0f;
    best.offer(keys, first);
  }
  return best.index;
}

// A token from norm(max(p - q, 0)), or -1 if nothing is left there: the exponential race, argmax (p - q) /
// Exp(1).
PEARL_CLONES int32_t sample_residual(const Softmax& target, const Softmax& draft, uint64_t seed,
                                     int64_t position) {
  const auto target_scale = static_cast<float>(1.0 / target.sum);
  const auto draft_scale = static_cast<float>(1.0 / draft.sum);
  const float* target_logits = target.logits;
  const float* draft_logits = draft.logits;
  const float target_max = target.max, draft_max = draft.max, inverse = target.inverse;
  const int vocab = target.vocab, draft_vocab = draft.vocab;
  Best best = {ordered(0.0f), kPlaceholderTokenId};
  uint32_t words[kBlock];
  float drafted[kBlock];
  float keys[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    const int both = draft_vocab - first < count ? (draft_vocab > first ? draft_vocab - first : 0) : count;
    fill_words(words, seed, position, Purpose::kResidual, first);
    for (int i = 0; i < both; ++i) {
      drafted[i] = exp_f32((draft_logits[first + i] - draft_max) * inverse) * draft_scale;
    }
    for (int i = both; i < count; ++i) drafted[i] = 0.0f;  // the draft cannot say these
    for (int i = 0; i < count; ++i) {
      const float wanted = exp_f32((target_logits[first + i] - target_max) * inverse) * target_scale;
      const float left = wanted - drafted[i];
      keys[i] = select(left > 0.0f, left, 0.0f) / exponential_of(uniform(words[i]));
    }
    for (int i = count; i < kBlock; ++i) keys[i] = 0.0f;
    best.offer(keys, first);
  }
  return best.index;
}

// The target's own token of a row: greedy, or sampled under the purpose of its kind.
int32_t own_token(const JudgeArgs& args, const float* logits, const RowScan& scan, int row) {
  if (!(args.temperature > 0.0f)) return scan.argmax;
  return sample_scanned(logits, args.vocab, scan, inverse_temperature(args.temperature), args.seed,
                        args.position + row, target_purpose(args.kind));
}

Prefix prefix_of(const JudgeArgs& args, int row) {
  const TransformedRows* rows = args.transformed;
  return {rows->tokens, args.position + row, rows->prompt_len};
}

const float* plain_row(const JudgeArgs& args, int row) {
  return args.target_logits + static_cast<int64_t>(row) * args.vocab;
}

// The target's row as it is judged.
const float* target_row(const JudgeArgs& args, int row) {
  const TransformedRows* rows = args.transformed;
  if (rows == nullptr) return plain_row(args, row);
  return rows->transformer->copy(*rows->transform, args.temperature, rows->slot, prefix_of(args, row),
                                 plain_row(args, row), args.vocab);
}

// The target's own greedy token, where the form of the answer is all that changes the row, and does not
// change this; else -1.
int32_t unmasked_token(const JudgeArgs& args, int row) {
  if (args.transformed == nullptr) return kPlaceholderTokenId;
  return greedy_unmasked(*args.transformed->transform, args.temperature, prefix_of(args, row),
                         plain_row(args, row), args.vocab);
}

}  // namespace

const char* name_of(JudgeKind kind) { return kind == JudgeKind::kCoupled ? "coupled" : "rejection"; }

JudgeKind judge_from(const std::string& name) {
  for (const JudgeKind kind : {JudgeKind::kRejection, JudgeKind::kCoupled}) {
    if (name == name_of(kind)) return kind;
  }
  refuse("judge is '" + name + "'; it must be 'rejection' or 'coupled'");
}

Purpose draft_purpose(JudgeKind kind) {
  return kind == JudgeKind::kCoupled ? Purpose::kTarget : Purpose::kDraft;
}

Purpose target_purpose(JudgeKind kind) {
  return kind == JudgeKind::kCoupled ? Purpose::kTarget : Purpose::kBonus;
}

Verdict judge(const JudgeArgs& args) {
  const int draft_vocab = args.draft_vocab > 0 ? args.draft_vocab : args.vocab;
  const bool by_ratio = args.kind == JudgeKind::kRejection && args.temperature > 0.0f;
  for (int row = 0; row < args.num_draft + (args.has_bonus ? 1 : 0); ++row) {
    int32_t own = unmasked_token(args, row);
    const float* logits = nullptr;
    RowScan scan{};
    if (own < 0) {
      logits = target_row(args, row);
      scan = scan_row(logits, args.vocab);
      if (!scan.usable) return {row, kPlaceholderTokenId, row};
      if (!by_ratio || row == args.num_draft) own = own_token(args, logits, scan, row);
    }
    if (row == args.num_draft) return {row, own, -1};

    const int32_t candidate = args.draft_token_ids[row];
    if (candidate < 0 || candidate >= args.vocab) return {row, kPlaceholderTokenId, row};
    if (!by_ratio) {
      if (own != candidate) return {row, own, -1};
      continue;
    }

    const float* drafted = args.draft_logits[row];
    const RowScan draft_scan = drafted == nullptr ? scan : scan_row(drafted, draft_vocab);
    if (!draft_scan.usable) return {row, kPlaceholderTokenId, row};
    const float inverse = inverse_temperature(args.temperature);
    const Softmax target = softmax_of(logits, args.vocab, scan, inverse);
    const int64_t position = args.position + row;
    const float u = accept_uniform(args.seed, position);
    int32_t recovered = kPlaceholderTokenId;
    if (drafted == nullptr) {
      if (accepts_certain(target, candidate, u)) continue;
      recovered = sample_others(target, candidate, args.seed, position);
    } else {
      const Softmax draft = softmax_of(drafted, draft_vocab, draft_scan, inverse);
      if (accepts(target, draft, candidate, u)) continue;
      recovered = sample_residual(target, draft, args.seed, position);
    }
    if (recovered != kPlaceholderTokenId) return {row, recovered, -1};
    return {row, sample_scanned(logits, args.vocab, scan, inverse, args.seed, position, Purpose::kResidual),
            -1};
  }
  return {args.num_draft, kPlaceholderTokenId, -1};
}

}  // namespace pearl
