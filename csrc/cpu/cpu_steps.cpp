#include "cpu/cpu_steps.h"

#include <algorithm>
#include <string>

#include "cpu/judge.h"
#include "cpu/sampling.h"

namespace pearl {

namespace {

constexpr int64_t kPrefillChunk = 256;  // tokens; multiples of it are where prompts are cut

}  // namespace

CpuSteps::CpuSteps(Executor* executor, State* state, Run* run)
    : executor_(executor), state_(state), run_(run) {
  segments_.reserve(state->num_slots);
  window_len_.resize(state->num_slots);
  fed_.resize(static_cast<size_t>(state->num_slots) * (state->gamma_max + 1));
  candidates_.resize(2 * state->gamma_max);
  draft_rows_.resize(2 * state->gamma_max);
  if (executor->vocab_size() < state->vocab_size) known_.resize(state->num_slots * kPrefillChunk);
  result_.token_ids.reserve(state->gamma_max + 1);
}

const int32_t* CpuSteps::known(int slot, const int32_t* token_ids, int64_t count) {
  const int vocab = executor_->vocab_size();
  if (vocab >= state_->vocab_size) return token_ids;
  int32_t* out = known_.data() + slot * kPrefillChunk;
  for (int64_t i = 0; i < count; ++i) out[i] = std::min(token_ids[i], vocab - 1);
  return out;
}

void CpuSteps::prefill(bool with_last) {
  State& s = *state_;
  for (int64_t start = 0;; start += kPrefillChunk) {
    if (run_->halted()) return;
    segments_.clear();
    for (int b = 0; b < s.num_slots; ++b) {
      const int64_t end = s.prompt_len[b] - (with_last ? 0 : 1);
      const int64_t stop = std::min(end, start + kPrefillChunk);
      if (start >= stop) continue;
      const int num_logits = with_last && stop == end ? 1 : 0;
      segments_.push_back({b, known(b, s.tokens(b) + start, stop - start), static_cast<int>(stop - start),
                           start, num_logits, num_logits > 0 ? s.target_rows(b) : nullptr});
    }
    if (segments_.empty()) return;
    executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
  }
}

void CpuSteps::first() {
  State& s = *state_;
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) s.num_rows[b] = 1;
  }
  verify(0);
}

void CpuSteps::draft() {
  State& s = *state_;
  const int vocab = std::min(s.vocab_size, s.draft_vocab_size);
  const Purpose purpose = draft_purpose(s.judge);
  int longest = 0;
  for (int b = 0; b < s.num_slots; ++b) {
    if (!s.running(b)) continue;
    const int64_t room = s.max_total_len[b] - s.committed[b] - s.pending[b];
    window_len_[b] = static_cast<int32_t>(std::min<int64_t>(s.gamma[b], room));
    longest = std::max(longest, window_len_[b]);
  }
  for (int j = 0; j < longest; ++j) {
    if (run_->halted()) return;
    segments_.clear();
    for (int b = 0; b < s.num_slots; ++b) {
      if (!s.running(b) || j >= window_len_[b]) continue;
      const int64_t position = s.committed[b] + s.pending[b] + j;
      float* row = s.draft_row(b, position);
      if (j == 0) {
        segments_.push_back({b, known(b, s.tokens(b) + position - 2, 2), 2, position - 2, 1, row});
      } else {
        segments_.push_back({b, s.window(b) + j - 1, 1, position - 1, 1, row});
      }
    }
    executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
    for (const Segment& segment : segments_) {
      const int b = segment.slot;
      const int64_t position = segment.start + segment.num_tokens;
      const int32_t token = sample(segment.logits, vocab, s.temperature[b], s.seed[b], position, purpose);
      if (token < 0) bad_logits("draft", "draft", b, position);
      s.window(b)[j] = token;
    }
  }
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) s.num_draft_tokens[b] = window_len_[b];
  }
}

void CpuSteps::score(bool include_window) {
  State& s = *state_;
  segments_.clear();
  for (int b = 0; b < s.num_slots; ++b) {
    if (!s.running(b)) continue;
    const int64_t first = s.committed[b] - 1;
    const int64_t candidates = s.pending[b] + (include_window ? s.num_draft_tokens[b] : 0);
    const int rows = static_cast<int>(std::min(candidates + 1, s.max_total_len[b] - s.committed[b]));
    s.num_rows[b] = rows;
    const int32_t* tokens = s.tokens(b) + first;
    if (include_window) {
      int32_t* fed = fed_.data() + static_cast<size_t>(b) * (s.gamma_max + 1);
      for (int r = 0; r < rows; ++r)
        fed[r] = r <= s.pending[b] ? tokens[r] : s.window(b)[r - 1 - s.pending[b]];
      tokens = fed;
    }
    segments_.push_back({b, tokens, rows, first, rows, s.target_rows(b)});
  }
  if (!segments_.empty()) executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
}

void CpuSteps::verify(int round) {
  State& s = *state_;
  if (!run_->ring.wait_for_room(s.num_slots)) return;
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) judge_slot(b, round);
  }
  if (!s.any_running()) run_->halt();
}

void CpuSteps::judge_slot(int b, int round) {
  State& s = *state_;
  const int64_t base = s.committed[b];
  const auto pending = static_cast<int>(s.pending[b]);
  const int window_len = round == 0 ? 0 : s.num_draft_tokens[b];
  const int num_draft = std::min(s.num_rows[b], pending + window_len);
  const bool has_bonus = s.num_rows[b] > num_draft;
  int32_t* tokens = s.tokens(b) + base;
  for (int i = 0; i < num_draft; ++i) {
    candidates_[i] = i < pending ? tokens[i] : s.window(b)[i - pending];
    draft_rows_[i] = s.draft_row(b, base + i);
  }

  JudgeArgs args{};
  args.target_logits = s.target_rows(b);
  args.draft_logits = draft_rows_.data();
  args.draft_token_ids = candidates_.data();
  args.num_draft = num_draft;
  args.has_bonus = has_bonus;
  args.vocab = s.vocab_size;
  args.draft_vocab = std::min(s.vocab_size, s.draft_vocab_size);
  args.position = base;
  args.temperature = s.temperature[b];
  args.seed = s.seed[b];
  args.kind = s.judge;
  const Verdict verdict = judge(args);
  if (verdict.bad_row >= 0) bad_logits(round == 0 ? "prefill" : "score", "target", b, base + verdict.bad_row);

  result_.round = round;
  result_.slot = b;
  result_.accept_len = verdict.accept_len;
  result_.num_judged = num_draft;
  result_.pending_before = pending;
  std::copy(s.window(b), s.window(b) + window_len, tokens + pending);
  if (verdict.next_token >= 0) {  // recovered or bonus: the window ends here
    tokens[verdict.accept_len] = verdict.next_token;
    commit(b, base + verdict.accept_len + 1, 0, &result_);
  } else {
    commit(b, base + num_draft, pending + window_len - num_draft, &result_);
  }
}

void CpuSteps::commit(int b, int64_t committed, int64_t pending, RoundResult* result) {
  State& s = *state_;
  const std::vector<int32_t>& stops = s.stop_token_ids[b];
  const int32_t* tokens = s.tokens(b);
  int64_t end = s.committed[b];
  FinishReason reason = FinishReason::kRunning;
  while (end < committed && reason == FinishReason::kRunning) {
    if (std::find(stops.begin(), stops.end(), tokens[end]) != stops.end()) reason = FinishReason::kStop;
    ++end;
  }
  if (reason == FinishReason::kRunning && end == s.max_total_len[b]) reason = FinishReason::kLength;
  result->token_ids.assign(tokens + s.committed[b], tokens + end);
  s.committed[b] = end;
  s.pending[b] = reason == FinishReason::kRunning ? pending : 0;
  s.finish_reason[b] = reason;
  result->finish_reason = reason;
  result->t_ns = now_ns();
  run_->ring.push(*result);
}

void CpuSteps::bad_logits(const char* step, const char* lane, int slot, int64_t position) const {
  throw Failure(FailureKind::kNumerics, std::string("NaN or infinite logits in step ") + step + " of the " +
                                            lane + " lane, sequence " + std::to_string(slot) + ", position " +
                                            std::to_string(position) + "; the run was stopped");
}

}  // namespace pearl
