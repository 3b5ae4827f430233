#include "drafters/lookup_drafter.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "core/checks.h"

namespace pearl {

namespace {

constexpr int kOne = LookupDrafter::kOne;
constexpr int kLeast = kOne / 16;  // a window ends before it stands with less
constexpr int kMostWords = 512;    // tokens of rejected rows that are kept, of a request
constexpr int kLongestRest = 32;   // rounds
constexpr int kPrior = 8;          // counts that a rate begins with
// Of kPrior: how many stood, by class of length.
constexpr int kHopes[3][6] = {{2, 3, 4, 5, 6, 7}, {1, 2, 3, 3, 3, 3}, {1, 3, 4, 5, 6, 7}};

}  // namespace

LookupDrafter::LookupDrafter(int64_t pool_tokens, bool leads)
    : pool_tokens_(pool_tokens), leads_(leads), pool_(pool_tokens) {}

int64_t LookupDrafter::bytes() const {
  int64_t sum = pool_.bytes();
  for (const Slot& slot : slots_) sum += slot.text.bytes() + slot.words.bytes();
  return sum;
}

void LookupDrafter::set_costs(StepCosts costs) {
  costs.check();
  costs_ = std::move(costs);
}

int LookupDrafter::class_of(int length) {
  if (length < 4) return length - 1;
  return length < 6 ? 3 : length < 9 ? 4 : 5;
}

void LookupDrafter::start(State* state, Run*) {
  state_ = state;
  for (Slot& slot : slots_) publish(&slot);
  if (slots_.size() == static_cast<size_t>(state->num_slots) && capacity_ == state->capacity) return;
  capacity_ = state->capacity;
  slots_.clear();
  for (int b = 0; b < state->num_slots; ++b) slots_.emplace_back(capacity_, kMostWords);
}

void LookupDrafter::forget(Slot* slot) {
  slot->is_used = false;
  slot->text.clear();
  slot->words.clear();
  slot->drafted.clear();
  slot->quiet = slot->rest = 0;
  for (auto& of_source : slot->rates) {
    for (Rate& rate : of_source) rate = {};
  }
}

// A request has ended: its answer joins the pool, but for what the last round committed.
void LookupDrafter::publish(Slot* slot) {
  if (slot->is_used && slot->shares && pool_tokens_ > 0 && slot->text.size() > slot->prompt_len + 1) {
    const auto first =
        static_cast<uint32_t>(std::max<int64_t>(slot->prompt_len, slot->text.size() - pool_tokens_));
    pool_.append(LookupIndex::kGap);
    for (uint32_t place = first; place < slot->text.size(); ++place) pool_.append(slot->text.at(place));
  }
  forget(slot);
}

void LookupDrafter::take_in(int b, bool reads_words) {
  State& s = *state_;
  Slot& slot = slots_[b];
  if (!slot.is_used || slot.request_id != s.request_id[b]) {
    publish(&slot);
    slot.is_used = true;
    slot.request_id = s.request_id[b];
    slot.prompt_len = s.prompt_len[b];
    slot.shares = s.shares[b] != 0;
  }
  learn(b);
  const int32_t* tokens = s.tokens(b);
  for (int64_t at = slot.text.size(); at < s.committed[b]; ++at) slot.text.append(tokens[at]);
  const int count = s.num_own_words[b];
  if (count < 2) return;  // the first is in the text
  s.num_own_words[b] = 0;
  if (!reads_words) return;
  slot.words.append(LookupIndex::kGap);
  for (int64_t at = std::max<int64_t>(s.committed[b] - 3, 0); at < s.committed[b] - 1; ++at) {
    slot.words.append(tokens[at]);
  }
  for (int i = 0; i < count; ++i) slot.words.append(s.own_words(b)[i]);
}

void LookupDrafter::learn(int b) {
  State& s = *state_;
  Slot& slot = slots_[b];
  const int32_t* tokens = s.tokens(b);
  size_t done = 0;
  for (; done < slot.drafted.size() && slot.drafted[done].position < s.committed[b]; ++done) {
    const Drafted& one = slot.drafted[done];
    const bool stands = tokens[one.position] == one.token;
    slot.rates[one.source][one.length_class].add(stands);
    if (done == 0) slot.rest = stands ? 0 : std::clamp(2 * slot.rest, 1, kLongestRest);
    if (!stands) return slot.drafted.clear();  // those behind it were never judged
  }
  slot.drafted.erase(slot.drafted.begin(), slot.drafted.begin() + static_cast<ptrdiff_t>(done));
  if (s.pending[b] == 0) slot.drafted.clear();
}

void LookupDrafter::find(Search* search, const std::vector<int32_t>& tail) {
  search->count =
      search->index->find(tail.data() + tail.size(), static_cast<int64_t>(tail.size()), search->matches);
}

// The token that most of the longest matches go on with; the latest of them among equals.
LookupDrafter::Candidate LookupDrafter::best(const Slot& slot, const Search& search) const {
  int longest = 0;
  for (int i = 0; i < search.count; ++i) longest = std::max(longest, class_of(search.matches[i].length));
  int32_t token = LookupIndex::kGap;
  int most = 0, all = 0;
  for (int i = 0; i < search.count; ++i) {
    if (class_of(search.matches[i].length) < longest) continue;
    ++all;
    const int32_t next = search.index->at(search.matches[i].next);
    int votes = 0;
    for (int j = 0; j < search.count; ++j) {
      votes +=
          class_of(search.matches[j].length) == longest && search.index->at(search.matches[j].next) == next;
    }
    if (votes > most) {
      most = votes;
      token = next;
    }
  }
  if (token == LookupIndex::kGap) return {token, 0, 0};
  const Rate& rate = slot.rates[search.source][longest];
  const int stood = rate.stood + kHopes[search.source][longest];
  return {token, longest, kOne * stood / (rate.judged + kPrior) * most / all};
}

LookupDrafter::Proposal LookupDrafter::propose(int b, int room, bool reads_pool) {
  State& s = *state_;
  Slot& slot = slots_[b];
  const int64_t end = s.committed[b] + s.pending[b];
  std::erase_if(slot.drafted,
                [&](const Drafted& one) { return one.position >= end; });  // another's are there
  tail_.assign(s.tokens(b) + std::max<int64_t>(end - LookupIndex::kLongest, 0), s.tokens(b) + end);
  Search searches[kNumSources] = {
      {&slot.text, kText, {}, 0}, {&slot.words, kWords, {}, 0}, {&pool_, kPool, {}, 0}};
  Search* search = nullptr;
  Candidate next{LookupIndex::kGap, 0, 0};
  int chance = kOne;  // that all of the window stand
  int64_t expected = 0;
  int count = 0;
  TokenMask* const mask = s.transform[b].mask.get();
  const auto answer = [&] { return Prefix{s.tokens(b), end, s.prompt_len[b], s.window(b), count}.answer(); };
  const int most = s.forced_room(b);
  const bool weighs = this->weighs(b);
  int64_t tokens = kOne, best_tokens = 0;  // of kOne: of a round with this window, and with the best one
  int least = 0, best_count = 0;           // drafts that stay in any case
  const auto weigh = [&] {
    if (!weighs) return;
    const bool is_first = best_count == 0 || count == least;
    if (!is_first && tokens * costs_.score(best_count) <= best_tokens * costs_.score(count)) return;
    best_tokens = tokens;
    best_count = count;
  };
  for (;;) {
    if (mask != nullptr && count < most) {  // what the form of the answer has next anyway, on top of the room
      const std::vector<int32_t> sure = mask->forced(answer(), most - count);
      for (const int32_t token : sure) {
        s.kind(b, end + count) = DraftKind::kForced;
        s.window(b)[count++] = token;
        tail_.push_back(token);
      }
      room = std::min(room + static_cast<int>(sure.size()), most);
      if (!sure.empty()) {
        tokens += static_cast<int64_t>(sure.size()) * chance;
        least = count;
        weigh();
        search = nullptr;
        next = {LookupIndex::kGap, 0, 0};
      }
    }
    if (count >= room) break;
    if (search == nullptr) {  // the source that is likeliest to be right
      for (Search& one : searches) {
        if (one.source == kPool && !reads_pool) continue;
        find(&one, tail_);
        const Candidate candidate = best(slot, one);
        if (candidate.chance > next.chance) {
          next = candidate;
          search = &one;
        }
      }
      if (search == nullptr) break;
    }
    if (mask != nullptr && mask->num_allowed(answer(), &next.token, 1) == 0) break;
    chance = chance * next.chance / kOne;
    const bool is_doubtful = chance < kLeast;
    if (is_doubtful && (count > 0 || (!leads_ && !weighs && slot.quiet < slot.rest))) break;
    expected += chance;
    s.kind(b, end + count) = DraftKind::kCertain;
    s.window(b)[count] = next.token;
    slot.drafted.push_back({end + count, next.token, search->source, next.length_class});
    tail_.push_back(next.token);
    ++count;
    tokens += chance;
    weigh();
    if (is_doubtful) break;  // one draft, to see
    int left = 0;
    for (int i = 0; i < search->count; ++i) {
      LookupIndex::Match match = search->matches[i];
      if (search->index->at(match.next) != next.token || !search->index->has(match.next + 1)) continue;
      search->matches[left++] = {match.next + 1, std::min(match.length + 1, LookupIndex::kLongest)};
    }
    search->count = left;
    next = best(slot, *search);
    if (next.chance == 0) search = nullptr;
  }
  if (weighs && count > 0) {
    // Those that are left out are compared with the text as well: doubts need no trial.
    const bool is_worth_it = least > 0 || best_tokens * costs_.score(0) > kOne * costs_.score(best_count);
    count = is_worth_it ? best_count : 0;
  }
  tokens = count > 0 ? best_tokens : kOne;
  slot.quiet = count > 0 ? 0 : slot.quiet + 1;
  while (fills_ && count < room) {
    s.kind(b, end + count) = DraftKind::kCertain;
    s.window(b)[count++] = s.tokens(b)[end - 1];
  }
  return {count, expected, tokens};
}

LookupDrafter::Proposal LookupDrafter::draft_slot(int b, int room) {
  const State& s = *state_;
  const bool is_free = !(s.temperature[b] > 0.0f) || s.judge == JudgeKind::kCoupled;
  take_in(b, is_free || !leads_);
  return room > 0 ? propose(b, room, slots_[b].shares && pool_tokens_ > 0 && is_free) : Proposal{};
}

void LookupDrafter::begin_round() {
  costs_.num_running = 0;
  for (int b = 0; b < state_->num_slots; ++b) costs_.num_running += state_->running(b) ? 1 : 0;
}

void LookupDrafter::draft() {
  State& s = *state_;
  begin_round();
  for (int b = 0; b < s.num_slots; ++b) {
    if (s.running(b)) s.num_draft_tokens[b] = draft_slot(b, s.window_room(b)).count;
  }
}

}  // namespace pearl
