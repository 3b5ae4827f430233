#include "drafters/chain/chain_drafter.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/checks.h"

namespace pearl {

namespace {

constexpr int64_t kOne = LookupDrafter::kOne;
constexpr int kPriorWindows = 2, kPriorStood = 4;  // that the model's counts begin with
constexpr int kLongestStreak = 64, kOfLookup = 4;  // behind it half of the model's counts go

// Of kOne.
int64_t cost_from(double steps) {
  check_number("cost", steps, steps >= 0 && steps <= 1000, "0 to 1000 steps of the target");
  return std::llround(steps * static_cast<double>(kOne));
}

}  // namespace

ChainDrafter::ChainDrafter(std::shared_ptr<ModelDrafter> model, int64_t pool_tokens, double cost,
                           bool for_all)
    : model_(std::move(model)), lookup_(pool_tokens, true), cost_(cost_from(cost)), for_all_(for_all) {
  model_->weigh_by(&lookup_.costs());
}

void ChainDrafter::set_costs(std::vector<int32_t> scores, std::vector<int32_t> windows) {
  if (scores.empty() != windows.empty()) refuse("costs of scores and of windows belong together");
  lookup_.set_costs({std::move(scores), std::move(windows), model_->num_passes() > 0});
}

void ChainDrafter::start(State* state, Run* run) {
  state_ = state;
  has_model_ = has_model(*state);
  model_->start(state, run);
  lookup_.start(state, run);
  slots_.assign(state->num_slots, {});
  has_window_.assign(state->num_slots, 0);
}

bool ChainDrafter::has_model(const State& state) const {
  const auto is_none = [](int32_t window) { return window == 0; };
  return !lookup_.costs().known() || state.windows.empty() ||
         !std::all_of(state.windows.begin(), state.windows.end(), is_none);
}

void ChainDrafter::prefill() {
  if (has_model_) model_->prefill();
}

bool ChainDrafter::asks(int b) const {
  return looks_up_ && state_->running(b) && (for_all_ || lookup_.weighs(b));
}

void ChainDrafter::draft() {
  State& s = *state_;
  std::fill(has_window_.begin(), has_window_.end(), 0);
  lookup_.begin_round();
  for (int b = 0; b < s.num_slots; ++b) {
    if (!has_model_) s.num_draft_tokens[b] = 0;
    if (!asks(b)) continue;
    learn(b);
    const int room = has_model_ ? s.window_room(b) : 0;
    // Drafts that cost no pass: a slot that adapts may have its longest window of them, alone or if it
    // weighs.
    const bool is_free = lookup_.weighs(b) || (room > 0 && s.adapts[b] && s.num_busy() == 1);
    const int longest = is_free ? static_cast<int>(std::clamp<int64_t>(s.room(b), 0, s.gamma[b])) : room;
    const LookupDrafter::Proposal proposal = lookup_.draft_slot(b, longest);
    const Choice choice = choose(b, proposal, room);
    if (choice == Choice::kModel) continue;
    has_window_[b] = 1;
    s.num_draft_tokens[b] = choice == Choice::kLookup ? proposal.count : 0;
    Slot& slot = slots_[b];
    // A window that follows drafts which may fall is not counted: these are drawn again with the same noise.
    if (s.pending[b] > 0) continue;
    slot.streak += choice == Choice::kLookup ? kOfLookup : 1;
    if (slot.streak < kLongestStreak) continue;
    slot.streak = 0;
    slot.windows /= 2;
    slot.stood /= 2;
  }
  if (!has_model_) return;
  model_->draft_but(has_window_);
  for (int b = 0; b < s.num_slots; ++b) {
    if (asks(b) && !has_window_[b]) note_model(b);
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
    if (one.is_first) slot.add_window();
    slot.stood += fell ? 0 : 1;
  }
  if (fell || s.pending[b] == 0) return slot.drafted.clear();  // those behind it were never judged
  slot.drafted.erase(slot.drafted.begin(), slot.drafted.begin() + static_cast<ptrdiff_t>(done));
}

// Whether a rule may end windows of the model.
bool ChainDrafter::ends_early(int b) const {
  const StopKind kind = state_->stop[b].kind;
  return model_->ends_windows() && kind != StopKind::kNone && (kind != StopKind::kAuto || lookup_.weighs(b));
}

ChainDrafter::Choice ChainDrafter::choose(int b, const LookupDrafter::Proposal& proposal, int room) const {
  if (!lookup_.weighs(b)) return takes_lookup(b, proposal, room) ? Choice::kLookup : Choice::kModel;
  const Choice other = proposal.count > 0 ? Choice::kLookup : Choice::kNothing;
  if (room == 0) return other;
  // What windows of the model cost beyond rounds without them they have to be worth in tokens, but for one
  // token in all. Beside a lookup they have to have more tokens for their time. A window that a rule may end
  // has one draft more than are likely to stand; one pass computes all of its rows.
  const Slot& slot = slots_[b];
  const StepCosts& costs = lookup_.costs();
  const int64_t windows = slot.windows + kPriorWindows, stood = slot.stood + kPriorStood;
  const int judged = ends_early(b) ? static_cast<int>(std::min<int64_t>(room, 1 + stood / windows)) : room;
  const int64_t spent = costs.score(judged) + costs.window(costs.at_once ? room : judged);
  const int64_t anyway = model_->is_fed_each_round() ? costs.window(1) : 0;
  const int64_t plain = costs.score(0) + anyway;
  if (other == Choice::kNothing) {
    return (slot.stood + 1) * plain >= (spent - plain) * slot.windows ? Choice::kModel : other;
  }
  const int64_t tokens = kOne * (windows + std::min(stood, room * windows)) / windows;
  const int64_t looked_up = costs.score(proposal.count) + anyway;
  return tokens * looked_up > proposal.tokens * spent ? Choice::kModel : other;
}

// Tokens of a round for its cost: 1 + expected for a step of the target, against 1 + stood / windows for a
// step and the model's passes. The length that a rule gave a window is not counted: it is known before the
// window is judged, and would tell of noise that draws again.
bool ChainDrafter::takes_lookup(int b, const LookupDrafter::Proposal& proposal, int room) const {
  if (proposal.expected == 0) return false;
  const Slot& slot = slots_[b];
  const int64_t windows = slot.windows + kPriorWindows, stood = slot.stood + kPriorStood;
  const int of_window = model_->num_passes() > 0 ? std::min(room, model_->num_passes()) : room;
  const int64_t most = of_window * windows;
  const int64_t passes = ends_early(b) ? std::min(most, windows + stood) : most;
  return (kOne + proposal.expected) * (kOne * windows + cost_ * passes) >= kOne * kOne * (windows + stood);
}

void ChainDrafter::note_model(int b) {
  State& s = *state_;
  Slot& slot = slots_[b];
  const int64_t end = s.committed[b] + s.pending[b];
  bool is_first = true;
  for (int i = 0; i < s.num_draft_tokens[b]; ++i) {
    if (s.kind(b, end + i) == DraftKind::kForced) continue;
    slot.drafted.push_back({end + i, s.window(b)[i], is_first});
    is_first = false;
  }
  if (s.pending[b] > 0) return;
  if (!is_first) slot.streak = 0;
  if (s.is_refused[b]) slot.add_window();
}

}  // namespace pearl
