// Samples, judges, sums and transforms 500 random cases, and prints a hash of everything that came out.
#include <cstdio>
#include <random>
#include <vector>

#include "sampling/judge.h"
#include "sampling/logprobs.h"
#include "sampling/transform.h"

int main() {
  using namespace pearl;
  std::mt19937 words(7);
  const auto logit = [&words] { return static_cast<float>(static_cast<int32_t>(words())) * 0x1p-29f; };
  uint64_t hash = 14695981039346656037u;
  const auto mix = [&hash](uint64_t x) { hash = (hash ^ x) * 1099511628211u; };
  for (int trial = 0; trial < 500; ++trial) {
    const int vocab = 1 + static_cast<int>(words() % 3000);
    const int num_draft = 1 + static_cast<int>(words() % 5);
    const float temperature = std::vector<float>{1e-3f, 0.7f, 1.0f, 1e4f}[trial % 4];
    std::vector<float> target(vocab * (num_draft + 1)), draft(vocab * num_draft);
    for (float& x : target) x = trial % 7 || words() % 20 ? logit() : logit() * 1e30f;
    for (size_t i = 0; i < draft.size(); ++i) draft[i] = trial % 3 ? target[i] + 0.1f * logit() : logit();
    std::vector<const float*> rows(num_draft);
    std::vector<int32_t> ids(num_draft);
    for (const JudgeKind kind : {JudgeKind::kRejection, JudgeKind::kCoupled}) {
      for (int i = 0; i < num_draft; ++i) {
        rows[i] = draft.data() + i * vocab;
        ids[i] = sample(rows[i], vocab, temperature, trial, 10 + i, draft_purpose(kind));
        mix(ids[i]);
      }
      JudgeArgs args{};
      args.target_logits = target.data();
      args.draft_logits = rows.data();
      args.draft_token_ids = ids.data();
      args.num_draft = num_draft;
      args.has_bonus = true;
      args.vocab = vocab;
      args.position = 10;
      args.temperature = temperature;
      args.seed = trial;
      args.kind = kind;
      const Verdict verdict = judge(args);
      mix(verdict.accept_len);
      mix(verdict.next_token);
      mix(verdict.bad_row);
    }
    const RowScan scan = scan_row(target.data(), vocab);
    mix(__builtin_bit_cast(uint64_t,
                           exp_sum(target.data(), vocab, scan.max, inverse_temperature(temperature))));
    if (!scan.usable) continue;

    Transform transform;
    transform.logit_bias = {{0, 1.5f}, {vocab - 1, -2.5f}};
    transform.repetition_penalty = 1.3f;
    transform.frequency_penalty = 0.3f;
    transform.presence_penalty = 0.7f;
    transform.filters = {trial % 3 ? 1 + static_cast<int>(words() % 80) : 0, trial % 2 ? 0.9f : 1.0f,
                         trial % 5 ? 0.0f : 0.01f};
    std::vector<int32_t> tokens(40);
    for (int32_t& token : tokens) token = static_cast<int32_t>(words() % vocab);
    Transformer transformer(1);
    const float* row =
        transformer.copy(transform, temperature, 0, {tokens.data(), 40, 10}, target.data(), vocab);
    for (int i = 0; i < vocab; ++i) mix(__builtin_bit_cast(uint32_t, row[i]));
    FilterScratch scratch;
    std::vector<Logprob> entries;
    append_logprobs(target.data(), vocab, ids[0], vocab < 5 ? vocab : 5, &scratch, &entries);
    for (const Logprob& entry : entries) {
      mix(entry.token_id);
      mix(__builtin_bit_cast(uint32_t, entry.logprob));
      mix(entry.rank);
    }
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(hash));
}
