#include "cpu/lane/cpu_steps.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "sampling/judge.h"
#include "sampling/logprobs.h"
#include "sampling/sampling.h"

namespace pearl {

namespace {

constexpr int64_t kPrefillChunk = PromptRows::kLongestChunk;

}  // namespace

CpuSteps::CpuSteps(Executor* executor, State* state, Run* run)
    : executor_(executor), state_(state), run_(run), prompt_rows_(state), transformer_(state->num_slots) {
  segments_.reserve(state->num_slots);
  window_len_.resize(state->num_slots);
  end_.resize(state->num_slots);
  fed_.resize(static_cast<size_t>(state->num_slots) * (state->gamma_max + 1));
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

void CpuSteps::push(int slot, const int32_t* token_ids, int64_t num_tokens, int64_t start, int num_logits,
                    float* logits) {
  segments_.push_back({slot, token_ids, static_cast<int>(num_tokens), start, num_logits, logits,
                       state_->table(slot), state_->num_held[slot]});
}

void CpuSteps::push_prompt(int b, int64_t start, int64_t stop, bool with_logits) {
  State& s = *state_;
  int64_t num_logits = with_logits && stop == s.prompt_len[b] ? 1 : 0;
  float* logits = num_logits > 0 ? s.target_rows(b) : nullptr;
  if (with_logits && prompt_rows_.wants(b)) {
    num_logits = stop - start;
    logits = prompt_rows_.room(b, num_logits);
  }
  push(b, known(b, s.tokens(b) + start, stop - start), stop - start, start, static_cast<int>(num_logits),
       logits);
}

void CpuSteps::take_prompt_rows() {
  for (const Segment& segment : segments_) {
    if (segment.logits == nullptr || !prompt_rows_.is_room(segment.slot, segment.logits)) continue;
    prompt_rows_.take(segment.slot, segment.start, segment.num_tokens, &scratch_);
  }
}

void CpuSteps::prefill(bool with_last) {
  State& s = *state_;
  place_.assign(s.num_slots, 0);
  for (;;) {
    if (run_->halted()) return;
    segments_.clear();
    for (int b = 0; b < s.num_slots; ++b) {
      const int64_t end = with_last || s.prompt_len[b] == 0 ? s.prompt_len[b] : s.draft_prompt(b);
      const int64_t start = place_[b], stop = std::min(end, start + prompt_rows_.chunk(b));
      if (start < stop) push_prompt(b, start, stop, with_last);
      place_[b] = std::max(start, stop);
    }
    if (segments_.empty()) break;
    executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
    if (with_last) take_prompt_rows();
  }
  // Of all that have a prompt: which of them still run, the other lane may be deciding now.
  for (int b = 0; b < s.num_slots && !with_last; ++b) {
    if (s.prompt_len[b] > 0) s.draft_fed[b] = s.draft_prompt(b);
  }
}

void CpuSteps::first() {
  State& s = *state_;
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) s.num_rows[b] = 1;
  }
  verify(false);  // the draft's lane may still read its prompts
}

void CpuSteps::push_chunk(int64_t limit, bool with_logits) {
  State& s = *state_;
  const int b = s.feeding;
  if (b < 0) return;
  const int64_t start = s.fed[b];
  const int64_t end = std::min(start + prompt_rows_.chunk(b), limit);
  if (start < end) push_prompt(b, start, end, with_logits);
}

void CpuSteps::draft() {
  State& s = *state_;
  const int vocab = std::min(s.vocab_size, s.draft_vocab_size);
  int longest = 0;
  segments_.clear();
  for (int b = 0; b < s.num_slots; ++b) {
    window_len_[b] = 0;
    if (!s.running(b)) continue;
    const int64_t end = end_[b] = s.committed[b] + s.pending[b];
    const int64_t room = std::max<int64_t>(std::min(s.max_total_len[b], s.draft_capacity) - end, 0);
    const int gamma = s.adapts[b] ? std::min(s.gamma[b], s.window_limit) : s.gamma[b];
    window_len_[b] = static_cast<int32_t>(std::min<int64_t>(gamma, room));
    s.draft_fed[b] = std::min(s.draft_fed[b], end - 1);  // what was rejected had been fed
    s.bad_draft[b] = -1;
    if (window_len_[b] > 0 && end - s.draft_fed[b] > kPrefillChunk) push_missing(b, end);
    longest = std::max(longest, window_len_[b]);
  }
  if (s.feeding >= 0) {
    const int b = s.feeding;
    push_chunk(s.draft_prompt(b), false);
    s.draft_fed[b] = std::min(s.fed[b] + prompt_rows_.chunk(b), s.draft_prompt(b));
  }
  if (longest == 0 && !segments_.empty()) {
    executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
  }
  for (int j = 0; j < longest; ++j) {
    if (run_->halted()) return;
    for (int b = 0; b < s.num_slots; ++b) {
      if (!s.running(b) || j >= window_len_[b]) continue;
      const int64_t position = end_[b] + j;
      float* row = s.draft_row(b, position);
      if (j == 0) {
        const int64_t start = std::min(position - 2, s.draft_fed[b]);
        push(b, known(b, s.tokens(b) + start, position - start), position - start, start, 1, row);
      } else {
        push(b, s.window(b) + j - 1, 1, position - 1, 1, row);
      }
    }
    if (segments_.empty()) break;  // every window ended early
    executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
    for (const Segment& segment : segments_) {
      if (segment.num_logits == 0) continue;  // a prompt's chunk
      const int b = segment.slot;
      const int64_t position = segment.start + segment.num_tokens;
      const int32_t token = sample_draft(b, position, j, segment.logits, vocab);
      if (token < 0) {
        s.bad_draft[b] = position;
        window_len_[b] = j;  // nothing is fed behind it
      } else {
        s.window(b)[j] = token;
      }
    }
    segments_.clear();
  }
  for (int b = 0; b < s.num_slots; ++b) {
    if (!s.running(b)) continue;
    s.num_draft_tokens[b] = window_len_[b];
    if (window_len_[b] > 0) s.draft_fed[b] = end_[b] + window_len_[b] - 1;
  }
}

void CpuSteps::push_missing(int b, int64_t end) {
  State& s = *state_;
  const int64_t start = s.draft_fed[b];
  const int64_t stop = std::min(start + kPrefillChunk, end - 1);
  push(b, known(b, s.tokens(b) + start, stop - start), stop - start, start, 0, nullptr);
  s.draft_fed[b] = stop;
  window_len_[b] = 0;
}

int32_t CpuSteps::sample_draft(int b, int64_t position, int drafted, float* row, int vocab) {
  State& s = *state_;
  if (s.transform[b].any(s.temperature[b])) {
    const Prefix prefix{s.tokens(b), position - drafted, s.prompt_len[b], s.window(b), drafted};
    transformer_.apply(s.transform[b], s.temperature[b], b, prefix, row, vocab);
  }
  return sample(row, vocab, s.temperature[b], s.seed[b], position, draft_purpose(s.judge));
}

void CpuSteps::score(bool include_window) {
  State& s = *state_;
  segments_.clear();
  for (int b = 0; b < s.num_slots; ++b) {
    if (!s.running(b)) continue;
    const int64_t first = s.committed[b] - 1;
    const int64_t pending = s.pending[b];
    const int64_t candidates = pending + (include_window ? s.num_draft_tokens[b] : 0);
    const int rows = static_cast<int>(std::min(candidates + 1, s.max_total_len[b] - first - 1));
    check_rows(b, rows);
    s.num_rows[b] = rows;
    const int32_t* tokens = s.tokens(b) + first;
    if (include_window) {
      int32_t* fed = fed_.data() + static_cast<size_t>(b) * (s.gamma_max + 1);
      for (int r = 0; r < rows; ++r) fed[r] = r <= pending ? tokens[r] : s.window(b)[r - 1 - pending];
      tokens = fed;
    }
    push(b, tokens, rows, first, rows, s.target_rows(b));
  }
  if (s.feeding >= 0) push_chunk(s.prompt_len[s.feeding], true);
  if (segments_.empty()) return;
  executor_->forward(segments_.data(), static_cast<int>(segments_.size()));
  take_prompt_rows();
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
  s.fed[b] = std::min(s.fed[b] + prompt_rows_.chunk(b), s.prompt_len[b]);
  if (s.fed[b] < s.prompt_len[b]) return;
  s.feeding = -1;
  s.finish_reason[b] = FinishReason::kRunning;
  s.num_rows[b] = 1;
  judge_slot(b);
}

void CpuSteps::admit() {
  State& s = *state_;
  for (int b = 0; b < s.num_slots; ++b) {
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
  for (int i = 0; i < num_draft; ++i) draft_rows_[i] = s.draft_row(b, base + i);

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
  if (s.transform[b].any(s.temperature[b])) args.transformed = &rows;
  const Verdict verdict = judge(args);
  if (verdict.bad_row >= 0) {
    const char* step = s.round[b] == 0 ? "prefill" : "score";
    return end(b, FinishReason::kError, bad_logits_text(step, "target", b, base + verdict.bad_row));
  }

  result_.accept_len = verdict.accept_len;
  result_.num_judged = num_draft;
  result_.pending_before = pending;
  if (verdict.next_token >= 0) {  // recovered or bonus: the window ends here
    tokens[verdict.accept_len] = verdict.next_token;
    commit(b, base + verdict.accept_len + 1, 0);
  } else {
    commit(b, base + num_draft, pending + window_len - num_draft);
  }
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
  result_.logprobs.clear();
  for (int64_t row = 0; s.num_logprobs[b] >= 0 && row < end - s.committed[b]; ++row) {
    append_logprobs(s.target_rows(b) + row * s.vocab_size, s.vocab_size, result_.token_ids[row],
                    s.num_logprobs[b], &scratch_, &result_.logprobs);
  }
  result_.prompt_logprobs = std::exchange(s.prompt_logprobs[b], {});
  s.committed[b] = end;
  s.pending[b] = reason == FinishReason::kRunning ? pending : 0;
  s.finish_reason[b] = reason;
  publish(b);
}

void CpuSteps::end(int b, FinishReason reason, std::string error) {
  result_.accept_len = result_.num_judged = result_.pending_before = 0;
  result_.token_ids.clear();
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
  result_.t_ns = now_ns();
  run_->ring.push(result_);
}

}  // namespace pearl
