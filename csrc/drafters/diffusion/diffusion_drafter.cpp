#include "drafters/diffusion/diffusion_drafter.h"

#include <algorithm>
#include <utility>

#include "core/checks.h"
#include "sampling/sampling.h"

namespace pearl {

DiffusionDrafter::DiffusionDrafter(std::shared_ptr<Executor> executor, int32_t mask_token, int num_passes)
    : ModelDrafter(std::move(executor), mask_token), mask_token_(mask_token), num_passes_(num_passes) {
  constexpr int kMostPasses = 1 << 16;
  check_between("num_passes", num_passes, 1, kMostPasses);
}

void DiffusionDrafter::start(State* state, Run* run) {
  ModelDrafter::start(state, run);
  fillings_.assign(state->num_slots, {});
  fed_.resize(static_cast<size_t>(state->num_slots) * state->gamma_max);
}

void DiffusionDrafter::catch_up(int b) {
  fillings_[b] = {};
  ModelDrafter::catch_up(b);
}

void DiffusionDrafter::push_last(int b) {
  State& s = *state_;
  const Filling& filling = fillings_[b];
  const int count = window_len_[b] - drafted_[b];
  if (filling.pass == 0) {
    ModelDrafter::push_last(b);
  } else {
    const std::vector<Place>& places = filling.places;
    const auto open = std::find_if(places.begin(), places.end(), [](const Place& p) { return !p.has_token; });
    const auto first = static_cast<int>(open - places.begin());  // 1 at least: it has a row to come from
    int32_t* fed = fed_.data() + static_cast<size_t>(b) * s.gamma_max;
    for (int i = 0; i + 1 < count; ++i) {
      fed[i] = places[i].has_token ? s.window(b)[drafted_[b] + i] : mask_token_;
    }
    const int64_t start = end_[b] + drafted_[b];
    feeder_->push(b, fed, count - 1, start, count - first, s.draft_row(b, start + first));
    send_rows(b, start + first);
  }
  feeder_->segments.back().num_open = count - 1;
}

bool DiffusionDrafter::take_rows(const Segment& segment, int vocab) {
  State& s = *state_;
  const int b = segment.slot;
  Filling& filling = fillings_[b];
  const int64_t start = end_[b] + drafted_[b];
  s.draft_fed[b] = start;  // masks are no text, nor are tokens that others were guessed beside
  if (filling.pass++ == 0) filling.places.resize(window_len_[b] - drafted_[b]);
  for (int i = drafted_[b]; i < window_len_[b]; ++i) {
    if (filling.places[i - drafted_[b]].has_token || guess(b, i, vocab)) continue;
    window_len_[b] = i;  // what is guessed before it stays
    filling.pass = num_passes_;
  }
  keep_surest(&filling);
  const bool is_full = filling.num_filled == static_cast<int>(filling.places.size());
  if (!is_full && filling.pass < num_passes_) return true;
  while (drafted_[b] < window_len_[b]) s.kind(b, end_[b] + drafted_[b]++) = DraftKind::kFilled;
  draft_forced(b);
  return false;
}

bool DiffusionDrafter::guess(int b, int i, int vocab) {
  State& s = *state_;
  const int64_t position = end_[b] + i;
  float* const row = s.draft_row(b, position);
  if (!scan_row(row, vocab).usable) {
    s.bad_draft[b] = position;
    return false;
  }
  if (s.is_processed(b)) {
    const Prefix prefix{s.tokens(b), end_[b], s.prompt_len[b], s.window(b), i};
    transformer_->apply(s.transform[b], s.temperature[b], b, prefix, row, vocab);
  }
  const RowScan scan = scan_row(row, vocab);
  if (!scan.usable) return false;  // no token of the draft's is allowed
  const float inverse = s.temperature[b] > 0.0f ? inverse_temperature(s.temperature[b]) : 1.0f;
  s.window(b)[i] = scan.argmax;
  fillings_[b].places[i - drafted_[b]].doubt = exp_sum(row, vocab, scan.max, inverse);
  return true;
}

// Of T passes the t-th leaves ceil(n t / T) of n places with a token, and one more than before at least. The
// first place always gets its token: its row sees the text only, and would say the same again.
void DiffusionDrafter::keep_surest(Filling* filling) const {
  const auto count = static_cast<int64_t>(filling->places.size());
  const int64_t share = (count * filling->pass + num_passes_ - 1) / num_passes_;
  const int64_t wanted = std::min(count, std::max<int64_t>(share, filling->num_filled + 1));
  while (filling->num_filled < wanted) {
    Place* surest = nullptr;
    for (Place& place : filling->places) {
      if (place.has_token || (filling->num_filled == 0 && surest != nullptr)) continue;
      if (surest == nullptr || place.doubt < surest->doubt) surest = &place;
    }
    surest->has_token = true;
    ++filling->num_filled;
  }
}

}  // namespace pearl
