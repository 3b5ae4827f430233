#include "drafters/model_drafter.h"

#include <algorithm>

#include "sampling/judge.h"
#include "sampling/sampling.h"

namespace pearl {

void ModelDrafter::attach(const std::string& lane, const State& state) const {
  state.check_executor(lane, *executor_, state.draft_vocab_size, state.draft_capacity);
}

void ModelDrafter::start(State* state, Run* run) {
  state_ = state;
  run_ = run;
  feeder_.emplace(executor_.get(), state, run);
  transformer_.emplace(state->num_slots);
  window_len_.assign(state->num_slots, 0);
  most_.assign(state->num_slots, 0);
  stops_.assign(state->num_slots, {});
  end_.assign(state->num_slots, 0);
  drafted_.assign(state->num_slots, 0);
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
  feeder_->segments.clear();
  for (int b = 0; b < s.num_slots; ++b) {
    window_len_[b] = most_[b] = drafted_[b] = 0;
    fed_[b] = -1;
    if (!s.running(b)) continue;
    const int64_t end = end_[b] = s.committed[b] + s.pending[b];
    const bool drafts_here = has_window.empty() || !has_window[b];
    window_len_[b] = drafts_here ? s.window_room(b) : 0;
    s.draft_fed[b] = std::min(s.draft_fed[b], end - 1);  // what was rejected had been fed
    s.bad_draft[b] = -1;
    catch_up(b);
    if (window_len_[b] > 0) most_[b] = s.forced_room(b);
    stops_[b].begin(&s, b, mask_token_.has_value());
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
      if (s.running(b) && drafted_[b] < window_len_[b]) push_last(b);
    }
    feeder_->forward();
    drafts = false;
    for (const Segment& segment : feeder_->segments) {
      const int b = segment.slot;  // without logits: a prompt's chunk, or the window is not fed to its end
      const bool goes_on = segment.num_logits > 0 ? take_rows(segment, vocab) : drafted_[b] < window_len_[b];
      drafts = goes_on || drafts;
    }
    feeder_->segments.clear();
  }
  for (int b = 0; b < s.num_slots; ++b) {
    if (fed_[b] >= 0) s.draft_fed[b] = fed_[b];
    const bool drafts_here = has_window.empty() || !has_window[b];
    if (s.running(b) && drafts_here) s.num_draft_tokens[b] = window_len_[b];
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
  feeder_->push(b, feed, stop - start, start, rows, s.draft_row(b, position));
  send_rows(b, position);
}

void ModelDrafter::send_rows(int b, int64_t position) {
  Segment& last = feeder_->segments.back();
  last.num_here = state_->rows_to_wrap(position);
  last.rest = state_->draft_row(b, 0);
}

bool ModelDrafter::take_rows(const Segment& segment, int vocab) {
  State& s = *state_;
  const int b = segment.slot, rows = segment.num_logits;
  const int64_t first = end_[b] + drafted_[b];  // position of the first row
  s.draft_fed[b] = first;
  while (drafted_[b] < window_len_[b]) {
    const int64_t position = end_[b] + drafted_[b];
    if (position >= first + rows) return true;
    const int32_t token = sample_draft(b, position, drafted_[b], s.draft_row(b, position), vocab);
    if (token < 0) {
      if (token != kNothing) s.bad_draft[b] = position;
      window_len_[b] = drafted_[b];  // nothing is fed behind it
      break;
    }
    s.window(b)[drafted_[b]++] = token;
    s.kind(b, position) = DraftKind::kSampled;
    stops_[b].add(position, token);
    draft_forced(b);
  }
  return false;
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

int32_t ModelDrafter::sample_draft(int b, int64_t position, int drafted, float* row, int vocab) {
  State& s = *state_;
  const Prefix prefix{s.tokens(b), position - drafted, s.prompt_len[b], s.window(b), drafted};
  if (s.stop[b].kind == StopKind::kNone) {
    const int32_t token = greedy_unmasked(s.transform[b], s.temperature[b], prefix, row, vocab);
    if (token >= 0) return token;
  }
  const bool may_lack_tokens = lacks_ids_ || s.transform[b].mask != nullptr;
  const bool could_draft = may_lack_tokens && scan_row(row, vocab).usable;
  if (s.is_processed(b)) {
    transformer_->apply(s.transform[b], s.temperature[b], b, prefix, row, vocab);
  }
  if (!stops_[b].takes(row, vocab, s.temperature[b])) return kNothing;
  const int32_t token = sample(row, vocab, s.temperature[b], s.seed[b], position, draft_purpose(s.judge));
  return token < 0 && could_draft ? kNothing : token;
}

}  // namespace pearl
