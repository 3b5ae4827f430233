#include "drafters/model_drafter.h"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include "core/checks.h"
#include "sampling/candidates/candidates.h"
#include "sampling/judge.h"
#include "sampling/sampling.h"

namespace pearl {

ModelDrafter::ModelDrafter(std::shared_ptr<Executor> executor, std::optional<int32_t> mask_token,
                           DraftIds ids)
    : executor_(std::move(executor)),
      ids_(std::move(ids)),
      mask_token_(mask_token),
      head_rows_(executor_->logits_size()) {
  check_between("mask_token", mask_token.value_or(0), 0, executor_->vocab_size() - 1);
  ids_.check(head_rows_, executor_->vocab_size());
  if (mask_token && !ids_.draft_of.empty()) {
    refuse("mask_token and draft_ids: a draft with a vocabulary of its own goes token by token");
  }
}

void ModelDrafter::set_branch_costs(StepCosts costs) {
  if (costs.scores.empty() != costs.windows.empty()) refuse("costs of scores and of windows belong together");
  costs.check();
  branch_costs_ = std::move(costs);
}

void ModelDrafter::attach(const std::string& lane, const State& state) const {
  const bool translates = !ids_.draft_of.empty();
  const int vocab = translates ? executor_->vocab_size() : state.draft_vocab_size;
  state.check_executor(lane, *executor_, vocab, state.draft_capacity);
  const auto known = static_cast<int>(ids_.draft_of.size());
  if (translates && (known != state.vocab_size || known != state.draft_vocab_size)) {
    refuse("the " + lane + " lane has draft_ids for " + std::to_string(known) +
           " ids; the coordinator expects " + std::to_string(state.vocab_size));
  }
}

void ModelDrafter::start(State* state, Run* run) {
  state_ = state;
  run_ = run;
  feeder_.emplace(executor_.get(), state, run, nullptr, ids_.draft_of);
  rows_of_a_pass_ = mask_token_ ? state->gamma_max : 1;
  if (!ids_.target_of.empty()) {
    rows_.resize(static_cast<size_t>(state->num_slots) * rows_of_a_pass_ * head_rows_);
  }
  transformer_.emplace(state->num_slots);
  window_len_.assign(state->num_slots, 0);
  most_.assign(state->num_slots, 0);
  stops_.assign(state->num_slots, {});
  end_.assign(state->num_slots, 0);
  drafted_.assign(state->num_slots, 0);
  branched_.assign(state->candidates > 1 ? state->num_slots : 0, {});
  fed_.assign(state->num_slots, 0);
  feed_.resize(state->num_slots * (Feeder::kChunk + state->gamma_max));
}

void ModelDrafter::prefill() {
  State& s = *state_;
  if (!feeder_->prefill(false)) return;
  // Of all that have a prompt: which of them still run, the other lane may be deciding now.
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.prompt_len[b] > 0) s.draft_fed[b] = s.draft_prompt(b);
  }
}

void ModelDrafter::draft_but(const std::vector<char>& has_window) {
  State& s = *state_;
  const int vocab = std::min(s.vocab_size, s.draft_vocab_size);
  bool drafts = false;
  branch_costs_.num_running = 0;
  for (int b = 0; b < s.num_slots; ++b) branch_costs_.num_running += s.running(b) ? 1 : 0;
  feeder_->segments.clear();
  for (int b = 0; b < s.num_slots; ++b) {
    window_len_[b] = most_[b] = drafted_[b] = 0;
    fed_[b] = -1;
    if (!s.running(b)) continue;
    if (s.candidates > 1) learn_ranks(b);
    s.num_windows[b] = 1;
    const int64_t end = end_[b] = s.committed[b] + s.pending[b];
    const bool drafts_here = has_window.empty() || !has_window[b];
    window_len_[b] = drafts_here ? s.window_room(b) : 0;
    s.draft_fed[b] = std::min(s.draft_fed[b], end - 1);  // what was rejected had been fed
    s.bad_draft[b] = -1;
    catch_up(b);
    if (window_len_[b] > 0) most_[b] = s.forced_room(b);
    stops_[b].begin(&s, b, mask_token_.has_value(), costs_);
    if (drafts_here && draft_forced(b)) {
      drafts = true;
    } else {
      follow(b);
    }
  }
  if (s.feeding >= 0) feed_joiner(s.feeding);
  if (!drafts) feeder_->forward();
  while (drafts) {
    if (run_->halted()) return;
    for (int b = 0; b < s.num_slots; ++b) {
      if (!s.running(b) || drafted_[b] == window_len_[b]) continue;
      push_last(b);
      push_branches(b);
    }
    feeder_->forward();
    drafts = false;
    for (const Segment& segment : feeder_->segments) {
      if (segment.slot >= s.num_slots) {
        take_branch(segment, vocab);
        continue;
      }
      const int b = segment.slot;  // without logits: a prompt's chunk, or the window is not fed to its end
      const bool goes_on = segment.num_logits > 0 ? take_rows(segment, vocab) : drafted_[b] < window_len_[b];
      drafts = goes_on || drafts;
    }
    feeder_->segments.clear();
  }
  for (int b = 0; b < s.num_slots; ++b) {
    if (fed_[b] >= 0) s.draft_fed[b] = fed_[b];
    if (s.running(b) && s.num_windows[b] > 1) s.draft_fed[b] = end_[b];
    const bool drafts_here = has_window.empty() || !has_window[b];
    if (s.running(b) && drafts_here) s.num_draft_tokens[b] = window_len_[b];
    s.is_refused[b] = stops_[b].has_refused();
  }
}

void ModelDrafter::feed_joiner(int b) {
  State& s = *state_;
  feeder_->push_chunk(s.draft_prompt(b), false);
  fed_[b] = std::min(s.fed[b] + feeder_->chunk(b), s.draft_prompt(b));
}

void ModelDrafter::catch_up(int b) {
  State& s = *state_;
  const int64_t start = s.draft_fed[b], end = end_[b];
  if (window_len_[b] == 0 || end - start <= Feeder::kChunk) return;
  const int64_t stop = std::min(start + Feeder::kChunk, end - 1);
  feeder_->push(b, s.tokens(b) + start, stop - start, start, 0, nullptr);
  fed_[b] = stop;
  window_len_[b] = 0;
}

void ModelDrafter::push_last(int b) {
  State& s = *state_;
  const int64_t end = end_[b], position = end + drafted_[b];
  // The first pass of a window feeds two tokens at least.
  const int64_t start = s.draft_fed[b] < end ? std::min(end - 2, s.draft_fed[b]) : s.draft_fed[b];
  const int rows = mask_token_ ? window_len_[b] - drafted_[b] : 1;
  const int64_t stop = position + rows - 1;
  int32_t* feed = feed_.data() + b * (Feeder::kChunk + s.gamma_max);
  for (int64_t i = start; i < stop; ++i)
    feed[i - start] = i < end ? s.tokens(b)[i] : i < position ? s.window(b)[i - end] : *mask_token_;
  feeder_->push(b, feed, stop - start, start, rows, logits_at(b, position));
  if (rows_.empty()) send_rows(b, position);
}

void ModelDrafter::send_rows(int b, int64_t position) {
  Segment& last = feeder_->segments.back();
  last.num_here = state_->rows_to_wrap(position);
  last.rest = state_->draft_row(b, 0);
}

float* ModelDrafter::logits_at(int b, int64_t position) {
  return rows_.empty() ? state_->draft_row(b, position)
                       : rows_.data() + static_cast<size_t>(b) * rows_of_a_pass_ * head_rows_;
}

void ModelDrafter::spread(const float* logits, float* row) const {
  std::fill_n(row, state_->draft_vocab_size, -std::numeric_limits<float>::infinity());
  for (int i = 0; i < head_rows_; ++i) {
    if (ids_.target_of[i] != DraftIds::kNone) row[ids_.target_of[i]] = logits[i];
  }
}

bool ModelDrafter::take_rows(const Segment& segment, int vocab) {
  State& s = *state_;
  const int b = segment.slot, rows = segment.num_logits;
  const int64_t first = end_[b] + drafted_[b];  // position of the first row
  s.draft_fed[b] = first;
  while (drafted_[b] < window_len_[b]) {
    const int64_t position = end_[b] + drafted_[b];
    if (position >= first + rows) return true;
    if (!rows_.empty()) {
      spread(segment.logits + (position - first) * head_rows_, s.draft_row(b, position));
    }
    const int32_t token = sample_draft(b, 0, position, drafted_[b], s.draft_row(b, position), vocab);
    if (token < 0) {
      if (token != kNothing) s.bad_draft[b] = position;
      window_len_[b] = drafted_[b];  // nothing is fed behind it
      break;
    }
    s.window(b)[drafted_[b]++] = token;
    s.kind(b, position) = DraftKind::kSampled;
    if (drafted_[b] == 1) branch_off(b, vocab);
    stops_[b].add(position, token);
    draft_forced(b);
  }
  return false;
}

void ModelDrafter::branch_off(int b, int vocab) {
  State& s = *state_;
  if (s.candidates == 1 || !may_branch_) return;
  const int64_t position = end_[b];
  Branches& own = branched_[b];
  const bool weighs = s.adapts[b] && branch_costs_.known();
  const int count = weighs ? own.ranks.count(branch_costs_, s.candidates, window_len_[b]) : s.candidates;
  if (weighs && !own.ranks.looks(count)) return;
  own.candidates.resize(s.candidates);
  const int found =
      draw_candidates(s.draft_row(b, position), vocab, s.temperature[b], s.seed[b], position,
                      draft_purpose(s.judge), s.window(b)[0], s.candidates, own.candidates.data());
  own.candidates.resize(found);
  own.position = position;
  s.num_windows[b] = std::min(found, count);
  for (int number = 1; number < s.num_windows[b]; ++number) s.window(b, number)[0] = own.candidates[number];
}

void ModelDrafter::learn_ranks(int b) {
  State& s = *state_;
  Branches& own = branched_[b];
  if (own.request_id != s.request_id[b]) {
    own = {};
    own.request_id = s.request_id[b];
  }
  if (own.position < 0 || s.committed[b] <= own.position) return;
  const std::span<const int32_t> text(s.tokens(b) + own.position, s.tokens(b) + s.committed[b]);
  own.ranks.learn(text, own.candidates, s.num_windows[b], [&](int number) {
    return std::span<const int32_t>(s.window(b, number), s.num_draft_tokens[b]);
  });
  own.position = -1;
}

void ModelDrafter::push_branches(int b) {
  State& s = *state_;
  for (int number = 1; number < s.num_windows[b]; ++number) {
    const int64_t last = end_[b] + drafted_[b] - 1;
    feeder_->push_branch(b, number, s.window(b, number) + drafted_[b] - 1, 1, last, 1,
                         s.draft_row(b, last + 1, number), end_[b]);
  }
}

void ModelDrafter::take_branch(const Segment& segment, int vocab) {
  State& s = *state_;
  const int b = segment.slot % s.num_slots, number = segment.slot / s.num_slots;
  const int64_t position = segment.start + segment.num_tokens;
  const auto drafted = static_cast<int>(position - end_[b]);
  const int32_t token = sample_draft(b, number, position, drafted, segment.logits, vocab);
  if (token < 0) {
    s.bad_draft[b] = position;
    s.num_windows[b] = 1;  // nothing is fed behind it
    return;
  }
  s.window(b, number)[drafted] = token;
}

bool ModelDrafter::draft_forced(int b) {
  State& s = *state_;
  TokenMask* mask = s.transform[b].mask.get();
  // The form may tell a part of them: until it has no more.
  for (int before = -1; mask != nullptr && before < drafted_[b] && drafted_[b] < most_[b];) {
    before = drafted_[b];
    const Prefix prefix{s.tokens(b), end_[b], s.prompt_len[b], s.window(b), drafted_[b]};
    const std::vector<int32_t> tokens = mask->forced(prefix.answer(), most_[b] - drafted_[b]);
    for (const int32_t token : tokens) {
      s.window(b)[drafted_[b]] = token;
      s.kind(b, end_[b] + drafted_[b]++) = DraftKind::kForced;
    }
    window_len_[b] = std::min(window_len_[b] + static_cast<int32_t>(tokens.size()), most_[b]);
  }
  if (drafted_[b] < window_len_[b] && !stops_[b].goes_on()) window_len_[b] = drafted_[b];
  return drafted_[b] < window_len_[b];
}

int32_t ModelDrafter::sample_draft(int b, int number, int64_t position, int drafted, float* row, int vocab) {
  State& s = *state_;
  const Prefix prefix{s.tokens(b), position - drafted, s.prompt_len[b], s.window(b, number), drafted};
  if (!stops_[b].is_on()) {
    const int32_t token = greedy_unmasked(s.transform[b], s.temperature[b], prefix, row, vocab);
    if (token >= 0) return token;
  }
  const bool may_lack_tokens = !rows_.empty() || s.transform[b].mask != nullptr;
  const bool could_draft = may_lack_tokens && scan_row(row, vocab).usable;
  if (s.is_processed(b)) {
    transformer_->apply(s.transform[b], s.temperature[b], b, prefix, row, vocab);
  }
  if (!stops_[b].takes(row, vocab, s.temperature[b])) return kNothing;
  const int32_t token = sample(row, vocab, s.temperature[b], s.seed[b], position, draft_purpose(s.judge));
  return token < 0 && could_draft ? kNothing : token;
}

}  // namespace pearl
