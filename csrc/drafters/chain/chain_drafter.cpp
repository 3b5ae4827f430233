#include "drafters/chain/chain_drafter.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/checks.h"

namespace pearl {

namespace {

constexpr int64_t kOne = LookupDrafter::kOne;
constexpr int kMostWindows = 16;
constexpr int kPriorWindows = 2, kPriorStood = 4;  // that the model's counts begin with
constexpr int kLongestStreak = 16;                 // behind it half of the model's counts go

// Of kOne.
int64_t cost_from(double steps) {
  check_number("cost", steps, steps >= 0 && steps <= 1000, "0 to 1000 steps of the target");
  return std::llround(steps * static_cast<double>(kOne));
}

}  // namespace

ChainDrafter::ChainDrafter(std::shared_ptr<ModelDrafter> model, int64_t pool_tokens, double cost)
    : model_(std::move(model)), lookup_(pool_tokens, true), cost_(cost_from(cost)) {}

void ChainDrafter::start(State* state, Run* run) {
  state_ = state;
  model_->start(state, run);
  lookup_.start(state, run);
  slots_.assign(state->num_slots, {});
  has_window_.assign(state->num_slots, 0);
}

void ChainDrafter::draft() {
  State& s = *state_;
  std::fill(has_window_.begin(), has_window_.end(), 0);
  for (int b = 0; b < s.num_slots && looks_up_; ++b) {
    if (!s.running(b)) continue;
    learn(b);
    const int room = s.window_room(b);
    // Drafts that cost no pass: alone, a slot that adapts may have its longest window of them.
    const bool is_alone = room > 0 && s.adapts[b] && s.num_busy() == 1;
    const int longest = is_alone ? std::clamp(static_cast<int>(s.room(b)), 0, s.gamma[b]) : room;
    const LookupDrafter::Proposal proposal = lookup_.draft_slot(b, longest);
    if (!takes_lookup(b, proposal, room)) continue;
    has_window_[b] = 1;
    s.num_draft_tokens[b] = proposal.count;
    Slot& slot = slots_[b];
    // A window that follows drafts which may fall is not counted: these are drawn again with the same noise.
    if (s.pending[b] > 0 || ++slot.streak < kLongestStreak) continue;
    slot.streak = 0;
    slot.windows /= 2;
    slot.stood /= 2;
  }
  model_->draft_but(has_window_);
  for (int b = 0; b < s.num_slots && looks_up_; ++b) {
    if (s.running(b) && !has_window_[b]) note_model(b);
  }
}

void ChainDrafter::learn(int b) {
  const State& s = *state_;
  Slot& slot = slots_[b];
  if (!slot.is_used || slot.request_id != s.request_id[b]) {
    slot = {};
    slot.is_used = true;
    slot.request_id = s.request_id[b];
  }
  const int32_t* tokens = state_->tokens(b);
  bool fell = false;
  size_t done = 0;
  for (; !fell && done < slot.drafted.size() && slot.drafted[done].position < s.committed[b]; ++done) {
    const Drafted& one = slot.drafted[done];
    fell = tokens[one.position] != one.token;
    if (one.is_first && ++slot.windows == kMostWindows) {
      slot.windows /= 2;
      slot.stood /= 2;
    }
    slot.stood += fell ? 0 : 1;
  }
  if (fell || s.pending[b] == 0) return slot.drafted.clear();  // those behind it were never judged
  slot.drafted.erase(slot.drafted.begin(), slot.drafted.begin() + static_cast<ptrdiff_t>(done));
}

// Tokens of a round for its cost: 1 + expected for a step of the target, against 1 + stood / windows for a
// step and the model's passes. The length that a rule gave a window is not counted: it is known before the
// window is judged, and would tell of noise that draws again.
bool ChainDrafter::takes_lookup(int b, const LookupDrafter::Proposal& proposal, int room) const {
  if (proposal.expected == 0) return false;
  const Slot& slot = slots_[b];
  const int64_t windows = slot.windows + kPriorWindows, stood = slot.stood + kPriorStood;
  const bool ends_early = state_->stop[b].kind != StopKind::kNone;
  const int64_t most = room * windows;
  const int64_t passes = model_->drafts_at_once() ? windows
                         : ends_early             ? std::min(most, windows + stood)
                                                  : most;
  return (kOne + proposal.expected) * (kOne * windows + cost_ * passes) >= kOne * kOne * (windows + stood);
}

void ChainDrafter::note_model(int b) {
  State& s = *state_;
  Slot& slot = slots_[b];
  const int64_t end = s.committed[b] + s.pending[b];
  bool is_first = true;
  for (int i = 0; i < s.num_draft_tokens[b]; ++i) {
    if (s.kind(b, end + i) != DraftKind::kSampled) continue;
    slot.drafted.push_back({end + i, s.window(b)[i], is_first});
    is_first = false;
  }
  if (!is_first && s.pending[b] == 0) slot.streak = 0;
}

}  // namespace pearl
