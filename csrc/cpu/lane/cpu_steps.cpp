#include "cpu/lane/cpu_steps.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "sampling/judge.h"
#include "sampling/logprobs.h"
#include "sampling/sampling.h"

namespace pearl {

CpuSteps::CpuSteps(Executor* executor, State* state, Run* run, TapReader* taps)
    : state_(state), run_(run), feeder_(executor, state, run, taps), transformer_(state->num_slots) {
  fed_.resize(static_cast<size_t>(state->num_slots) * state->candidates * (state->gamma_max + 1));
  firsts_.resize(state->candidates);
  draft_rows_.resize(2 * state->gamma_max);
  result_.token_ids.reserve(state->gamma_max + 1);
  result_.forced.reserve(state->gamma_max + 1);
  result_.certain.reserve(state->gamma_max + 1);
}

void CpuSteps::prefill() { feeder_.prefill(true); }

void CpuSteps::first() {
  State& s = *state_;
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) s.num_rows[b] = 1;
  }
  verify(false);  // the draft's lane may still read its prompts
}

void CpuSteps::score(bool include_window) {
  State& s = *state_;
  feeder_.segments.clear();
  for (int b = 0; b < s.num_slots; ++b) {
    if (!s.running(b)) continue;
    const int64_t first = s.committed[b] - 1;
    const int64_t pending = s.pending[b];
    const int64_t candidates = pending + (include_window ? s.num_draft_tokens[b] : 0);
    const int rows = static_cast<int>(std::min(candidates + 1, s.max_total_len[b] - first - 1));
    check_rows(b, rows);
    s.num_rows[b] = rows;
    const int32_t* tokens = s.tokens(b) + first;
    if (!include_window) {
      feeder_.push(b, tokens, rows, first, rows, s.target_rows(b));
      continue;
    }
    for (int number = 0; number < s.num_windows[b]; ++number) {
      const size_t place = static_cast<size_t>(b) * s.candidates + number;
      int32_t* fed = fed_.data() + place * (s.gamma_max + 1);
      for (int r = 0; r < rows; ++r) fed[r] = r <= pending ? tokens[r] : s.window(b, number)[r - 1 - pending];
      float* logits = s.target_rows(b, number);
      if (number == 0) {
        feeder_.push(b, fed, rows, first, rows, logits);
      } else if (rows > 1) {
        feeder_.push_branch(b, number, fed, rows, first, rows - 1, logits + s.vocab_size, first);
      }
    }
  }
  if (s.feeding >= 0) feeder_.push_chunk(s.prompt_len[s.feeding], true);
  feeder_.forward();
}

void CpuSteps::verify(bool admits) {
  State& s = *state_;
  if (admits && run_->admission.has_news()) {
    let_go();
    if (auto windows = run_->admission.take_windows()) s.windows = std::move(*windows);
  }
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) judge_slot(b);
  }
  if (s.feeding >= 0) advance_feeding();
  if (admits) admit();  // not in the prologue: the other lane may be feeding what has ended
  s.limit_windows();
  if (s.num_busy() == 0 && run_->admission.close_if_empty()) run_->halt();
}

void CpuSteps::advance_feeding() {
  State& s = *state_;
  const int b = s.feeding;
  s.fed[b] = std::min(s.fed[b] + feeder_.chunk(b), s.prompt_len[b]);
  if (s.fed[b] < s.prompt_len[b]) return;
  s.feeding = -1;
  s.finish_reason[b] = FinishReason::kRunning;
  s.num_rows[b] = 1;
  judge_slot(b);
}

void CpuSteps::admit() {
  State& s = *state_;
  for (int b = 0; b < s.num_slots; ++b) {
    s.make_known(b);
    if (s.idle(b)) s.release(b);
  }
  if (run_->admission.has_news()) {
    for (int b = 0; b < s.num_slots; ++b) {
      if (!s.idle(b)) continue;
      const std::optional<Admission::Waiting> waiting =
          run_->admission.next([&](const Request& request) { return s.reserve(b, request); });
      if (!waiting) break;
      s.fill(b, waiting->id, waiting->request, false);
    }
  }
  if (s.feeding >= 0) return;  // one prompt at a time, so that a round waits for one chunk at most
  for (int b = 0; b < s.num_slots; ++b) {
    const bool feeds = s.finish_reason[b] == FinishReason::kFeeding;
    if (feeds && (s.feeding < 0 || s.request_id[b] < s.request_id[s.feeding])) s.feeding = b;
  }
  if (s.feeding >= 0) s.find_more(s.feeding);
}

void CpuSteps::let_go() {
  State& s = *state_;
  for (const uint64_t id : run_->admission.take_cancelled()) {
    for (int b = 0; b < s.num_slots; ++b) {
      if (s.idle(b) || s.request_id[b] != id) continue;
      if (s.feeding == b) s.feeding = -1;
      end(b, FinishReason::kAbort, "");
    }
  }
}

void CpuSteps::check_rows(int b, int64_t rows) const {
  if (rows >= 1 && rows <= state_->gamma_max + 1) return;
  throw Failure(FailureKind::kRequest, "the lanes of the program are not in step: sequence " +
                                           std::to_string(b) + " has " + std::to_string(rows) +
                                           " rows to judge");
}

void CpuSteps::check_window(int b, int64_t pending, int64_t window_len) const {
  const State& s = *state_;
  const int64_t room = s.max_total_len[b] - s.committed[b];
  if (pending >= 0 && window_len >= 0 && pending <= s.gamma_max && window_len <= s.gamma_max &&
      pending + window_len <= room) {
    return;
  }
  throw Failure(FailureKind::kRequest, "the lanes of the program are not in step: sequence " +
                                           std::to_string(b) + " has " + std::to_string(pending) +
                                           " pending tokens, a window of " + std::to_string(window_len) +
                                           " behind them, and room for " + std::to_string(room));
}

void CpuSteps::judge_slot(int b) {
  State& s = *state_;
  if (s.bad_draft[b] >= 0)
    return end(b, FinishReason::kError, bad_logits_text("draft", "draft", b, s.bad_draft[b]));
  if (s.bad_prompt[b] >= 0)
    return end(b, FinishReason::kError, bad_logits_text("prefill", "target", b, s.bad_prompt[b]));
  const int64_t base = s.committed[b];
  const auto pending = static_cast<int>(s.pending[b]);
  const int window_len = s.round[b] == 0 ? 0 : s.num_draft_tokens[b];
  check_rows(b, s.num_rows[b]);
  check_window(b, pending, window_len);
  const int num_draft = std::min(s.num_rows[b], pending + window_len);
  const bool has_bonus = s.num_rows[b] > num_draft;
  int32_t* tokens = s.tokens(b) + base;
  std::copy(s.window(b), s.window(b) + window_len, tokens + pending);
  for (int i = 0; i < num_draft; ++i) draft_rows_[i] = s.judged_row(b, base + i);

  JudgeArgs args{};
  args.target_logits = s.target_rows(b);
  args.draft_logits = draft_rows_.data();
  args.draft_token_ids = tokens;
  args.num_draft = num_draft;
  args.has_bonus = has_bonus;
  args.vocab = s.vocab_size;
  args.draft_vocab = std::min(s.vocab_size, s.draft_vocab_size);
  args.position = base;
  args.temperature = s.temperature[b];
  args.seed = s.seed[b];
  args.kind = s.judge;
  const TransformedRows rows{&transformer_, &s.transform[b], b, s.tokens(b), s.prompt_len[b]};
  if (s.is_processed(b)) args.transformed = &rows;
  taken_ = 0;
  const bool has_others = window_len > 0 && s.num_windows[b] > 1;
  const Verdict verdict = has_others ? judge_windows(b, args) : judge(args);
  if (verdict.bad_row >= 0) {
    if (const std::string text = form_text(b, verdict.bad_row); !text.empty())
      return end(b, FinishReason::kError, text);
    const char* step = s.round[b] == 0 ? "prefill" : "score";
    return end(b, FinishReason::kError, bad_logits_text(step, "target", b, base + verdict.bad_row));
  }

  if (s.keeps_own_words) keep_own_words(b, verdict);
  result_.accept_len = verdict.accept_len;
  result_.num_judged = num_draft;
  result_.pending_before = pending;
  result_.is_refused = s.round[b] > 0 && s.is_refused[b] && verdict.accept_len == pending;
  if (verdict.next_token >= 0) {  // recovered or bonus: the window ends here
    tokens[verdict.accept_len] = verdict.next_token;
    commit(b, base + verdict.accept_len + 1, 0);
  } else {
    commit(b, base + num_draft, pending + window_len - num_draft);
  }
}

Verdict CpuSteps::judge_windows(int b, JudgeArgs args) {
  State& s = *state_;
  const int64_t base = args.position;
  int32_t* tokens = s.tokens(b) + base;
  for (int number = 0; number < s.num_windows[b]; ++number) firsts_[number] = s.window(b, number)[0];
  const float* row = args.target_logits;
  if (args.transformed != nullptr) {
    const Prefix prefix{s.tokens(b), base, s.prompt_len[b]};
    row = transformer_.copy(s.transform[b], s.temperature[b], b, prefix, row, s.vocab_size);
  }
  const Choice first =
      candidates_.choose({row, s.draft_row(b, base), firsts_.data(), s.num_windows[b], s.vocab_size,
                          args.draft_vocab, base, args.temperature, args.seed, args.kind});
  if (first.taken < 0) return {0, first.next_token, first.next_token < 0 ? 0 : -1};
  taken_ = first.taken;
  std::copy_n(s.window(b, taken_), s.num_draft_tokens[b], tokens);
  for (int i = 1; i < args.num_draft; ++i) draft_rows_[i] = s.draft_row(b, base + i, taken_);
  args.target_logits = s.target_rows(b, taken_) + s.vocab_size;
  args.draft_logits = draft_rows_.data() + 1;
  args.draft_token_ids = tokens + 1;
  args.num_draft -= 1;
  args.position += 1;
  Verdict verdict = judge(args);
  verdict.accept_len += 1;
  verdict.bad_row += verdict.bad_row >= 0 ? 1 : 0;
  // Its rows stand beside those of window 0; that of the last committed token is the same.
  if (taken_ > 0) feeder_.adopt(b, taken_, base, base + verdict.accept_len);
  return verdict;
}

std::string CpuSteps::form_text(int b, int row) const {
  State& s = *state_;
  const TokenMask* mask = s.transform[b].mask.get();
  const float* logits = judged_row(b, row);
  if (mask == nullptr || !scan_row(logits, s.vocab_size).usable) return "";
  const std::string error = mask->error();
  return "structured_outputs leaves no token at position " + std::to_string(s.committed[b] + row) +
         (error.empty() ? "" : ": " + error);
}

// Not transformed, and without noise: what a drafter is told must not depend on what judges its drafts.
void CpuSteps::keep_own_words(int b, const Verdict& verdict) {
  State& s = *state_;
  int count = 0;
  const int rows = verdict.next_token < 0 ? 0 : s.num_rows[b];
  for (int row = verdict.accept_len; row < rows; ++row) {
    const float* logits = s.target_rows(b) + static_cast<int64_t>(row) * s.vocab_size;
    const int32_t token =
        row == verdict.accept_len ? verdict.next_token : scan_row(logits, s.vocab_size).argmax;
    if (token < 0) break;  // NaN behind a rejection ends no request
    s.own_words(b)[count++] = token;
  }
  s.num_own_words[b] = count;
}

void CpuSteps::commit(int b, int64_t committed, int64_t pending) {
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
  result_.token_ids.assign(tokens + s.committed[b], tokens + end);
  const int accepted = result_.accept_len, judged = std::min(accepted + 1, result_.num_judged);
  s.find_drafts(b, DraftKind::kForced, std::min<int64_t>(end - s.committed[b], accepted), &result_.forced);
  s.find_drafts(b, DraftKind::kCertain, judged, &result_.certain);
  result_.logprobs.clear();
  for (int64_t row = 0; s.num_logprobs[b] >= 0 && row < end - s.committed[b]; ++row) {
    append_logprobs(judged_row(b, row), s.vocab_size, result_.token_ids[row], s.num_logprobs[b], &scratch_,
                    &result_.logprobs);
  }
  result_.prompt_logprobs = std::exchange(s.prompt_logprobs[b], {});
  s.committed[b] = end;
  s.pending[b] = reason == FinishReason::kRunning ? pending : 0;
  s.finish_reason[b] = reason;
  publish(b);
}

void CpuSteps::end(int b, FinishReason reason, std::string error) {
  result_.accept_len = result_.num_judged = result_.pending_before = 0;
  result_.is_refused = false;
  result_.token_ids.clear();
  result_.forced.clear();
  result_.certain.clear();
  result_.logprobs.clear();
  result_.prompt_logprobs.clear();
  result_.error = std::move(error);
  state_->finish_reason[b] = reason;
  state_->pending[b] = 0;
  publish(b);
  result_.error.clear();
}

void CpuSteps::publish(int b) {
  State& s = *state_;
  result_.request_id = s.request_id[b];
  result_.round = s.round[b]++;
  result_.slot = b;
  result_.finish_reason = s.finish_reason[b];
  result_.num_cached_tokens = s.cached_tokens(b);
  result_.t_ns = now_ns();
  run_->ring.push(result_);
}

}  // namespace pearl
