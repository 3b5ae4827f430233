#include "drafters/stop_rule.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/checks.h"
#include "core/noise.h"
#include "core/vector_math.h"
#include "sampling/rows.h"
#include "sampling/sampling.h"

namespace pearl {

namespace {

constexpr double kOfEntropy = 0.2, kWanted = 0.9;  // AdaEDL: of the bound; the acceptance that is aimed at
constexpr double kKeptAcceptance = 0.5, kKeptThreshold = 0.9, kStep = 0.01;
constexpr double kRowCost = 1.0 / 64;        // of one more row that the target scores, in steps of the target
constexpr int kPrior = 8;                    // counts that the rate of a class begins with
constexpr double kHoped = 7, kHopedOf = 10;  // those of all rows together
constexpr int kLongestQuiet = 15;            // windows without a pass, before one that is not worth it

// The entropy of softmax((logits - max) * inverse), in nats.
PEARL_CLONES double entropy_of(const float* logits, int vocab, float max, float inverse) {
  BlockSum sum, product_sum;
  float terms[kBlock], products[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    for (int i = 0; i < count; ++i) {
      const float x = (logits[first + i] - max) * inverse;
      terms[i] = exp_f32(x);
      products[i] = select(terms[i] > 0.0f, terms[i] * x, 0.0f);  // a branch would not be vector code
    }
    for (int i = count; i < kBlock; ++i) terms[i] = products[i] = 0.0f;
    sum.add(terms);
    product_sum.add(products);
  }
  const double total = sum.total();
  const double entropy =
      static_cast<double>(log_f32(static_cast<float>(total))) - product_sum.total() / total;
  return std::max(entropy, 0.0);
}

// With probability theta, drawn from Beta(1 + stood, 1 + fell): the (1 + stood)-th smallest of 1 + judged
// uniforms (Devroye, "Non-Uniform Random Variate Generation", 1986). Words are compared instead, so that
// nothing is rounded. position: of the draft that would be next.
bool goes_on_by_chance(uint64_t seed, int64_t position, const Rate& rate) {
  uint32_t words[Rate::kMost + 4];  // that of index 0 is compared with theta, which the others give
  const int count = rate.judged + 2;
  for (int first = 0; first < count; first += 4) {
    const PhiloxWords four = noise_words(seed, position, Purpose::kStop, static_cast<uint32_t>(first / 4));
    std::copy_n(four.w, 4, words + first);
  }
  uint32_t* const theta = words + 1 + rate.stood;
  std::nth_element(words + 1, theta, words + count);
  return words[0] < *theta;
}

}  // namespace

StopRule stop_from(const std::string& name, double at) {
  StopRule rule{};
  if (name == "none") return rule;
  if (name == "auto") {
    rule.kind = StopKind::kAuto;
    return rule;
  }
  if (name == "confidence") {
    rule.kind = StopKind::kConfidence;
  } else if (name == "adaedl") {
    rule.kind = StopKind::kAdaEdl;
  } else if (name == "marginal") {
    rule.kind = StopKind::kMarginal;
  } else if (name == "thompson") {
    rule.kind = StopKind::kThompson;
    return rule;
  } else {
    refuse("draft_stop '" + name + "' is not one of none, auto, confidence, adaedl, marginal, thompson");
  }
  const double most = rule.kind == StopKind::kMarginal ? 1e9 : 1.0;
  check_number("draft_stop_at", at, at > 0 && at <= most, "above 0, and a probability but for marginal");
  rule.at = at;
  return rule;
}

void WindowStop::begin(State* state, int b, bool at_once, const StepCosts* costs) {
  State& s = *state;
  if (!is_used_ || request_id_ != s.request_id[b]) {
    *this = WindowStop();
    is_used_ = true;
    request_id_ = s.request_id[b];
    rule_ = s.stop[b];
    costs_ = costs;
    const bool weighs = costs != nullptr && costs->known() && s.adapts[b];
    if (rule_.kind == StopKind::kAuto && !weighs) rule_.kind = StopKind::kNone;
    seed_ = s.seed[b];
    threshold_ = rule_.at;
    acceptance_ = kWanted;
  }
  if (rule_.kind == StopKind::kNone) return;
  learn(s.tokens(b), s.committed[b], s.pending[b]);
  is_on_final_ = s.pending[b] == 0;
  at_once_ = at_once;
  passes_ = rows_ = 0;
  room_ = s.window_room(b);
  is_last_ = has_refused_ = false;
  chance_ = tokens_ = spent_ = 1;
}

void WindowStop::learn(const int32_t* tokens, int64_t committed, int64_t pending) {
  int stood = 0;
  bool fell = false;
  size_t done = 0;
  for (; !fell && done < drafted_.size() && drafted_[done].position < committed; ++done) {
    const Drafted& one = drafted_[done];
    fell = tokens[one.position] != one.token;
    stood += fell ? 0 : 1;
    all_.add(!fell);
    rates_[one.row_class].add(!fell);
  }
  if (fell || pending == 0) {
    drafted_.clear();
  } else {
    drafted_.erase(drafted_.begin(), drafted_.begin() + static_cast<ptrdiff_t>(done));
  }
  if (done == 0) return;
  acceptance_ = kKeptAcceptance * acceptance_ + (1 - kKeptAcceptance) * (stood / static_cast<double>(done));
  const double moved = acceptance_ < kWanted ? threshold_ + kStep : threshold_ - kStep;
  threshold_ = std::clamp(kKeptThreshold * threshold_ + (1 - kKeptThreshold) * moved, 0.0, 1.0);
}

double WindowStop::pass_cost() const {
  if (rule_.kind != StopKind::kAuto) return rule_.at;
  const int64_t spent =
      at_once_ ? costs_->window(room_) : costs_->window(passes_ + 1) - costs_->window(passes_);
  return static_cast<double>(spent) / static_cast<double>(costs_->score(0));
}

double WindowStop::row_cost() const {
  if (rule_.kind != StopKind::kAuto) return kRowCost;
  const int64_t more = costs_->score(rows_ + 1) - costs_->score(rows_);
  return static_cast<double>(more) / static_cast<double>(costs_->score(0));
}

bool WindowStop::goes_on() {
  if (rule_.kind != StopKind::kMarginal && rule_.kind != StopKind::kAuto) return !is_last_;
  if (at_once_ && passes_ > 0) return true;  // the row is there
  const double next = (kHoped + all_.stood) / (kHopedOf + all_.judged);
  if (rule_.kind == StopKind::kAuto) {  // that the window has a pass was weighed before
    return passes_ == 0 || chance_ * next * spent_ > (pass_cost() + row_cost()) * tokens_;
  }
  const double expected = at_once_ ? next / (1 - next) : next;  // tokens that stand, of a pass
  bool is_worth_it = chance_ * expected * spent_ > rule_.at * tokens_;
  if (passes_ > 0) return is_worth_it;
  is_worth_it = is_worth_it || quiet_ >= kLongestQuiet;
  // What follows drafts that may fall is drafted again: it is not counted.
  if (is_on_final_) quiet_ = is_worth_it ? 0 : quiet_ + 1;
  return is_worth_it;
}

bool WindowStop::takes(const float* logits, int vocab, float temperature) {
  if (rule_.kind == StopKind::kNone || rule_.kind == StopKind::kThompson) return true;
  const RowScan scan = scan_row(logits, vocab);
  if (!scan.usable) return true;  // the caller says so
  const float inverse = temperature > 0.0f ? inverse_temperature(temperature) : 1.0f;
  if (rule_.kind == StopKind::kAdaEdl) {
    const double entropy = entropy_of(logits, vocab, scan.max, inverse);
    is_last_ = !(1 - std::sqrt(kOfEntropy * entropy) >= threshold_);
    return true;
  }
  const double top = 1.0 / exp_sum(logits, vocab, scan.max, inverse);  // of the likeliest token
  if (rule_.kind == StopKind::kConfidence) {
    is_last_ = !(top >= rule_.at);
    return true;
  }
  row_class_ = std::min(static_cast<int>(kClasses * top), kClasses - 1);
  if (passes_ == 0 || !at_once_) spent_ += pass_cost();
  ++passes_;
  const Rate& rate = rates_[row_class_];
  const double stands = chance_ * ((rate.stood + row_class_ + 0.5) / (rate.judged + kPrior));
  // A request whose drafts are all refused would never be known: kAuto judges its first one.
  const bool is_first = rule_.kind == StopKind::kAuto && rows_ == 0 && all_.judged == 0;
  if (!is_first && !(stands * spent_ > row_cost() * tokens_)) {
    has_refused_ = rows_ == 0;
    return false;
  }
  chance_ = stands;
  tokens_ += stands;
  spent_ += row_cost();
  ++rows_;
  return true;
}

void WindowStop::add(int64_t position, int32_t token) {
  if (rule_.kind == StopKind::kNone) return;
  drafted_.push_back({position, token, row_class_});
  if (rule_.kind == StopKind::kThompson) is_last_ = !goes_on_by_chance(seed_, position + 1, all_);
}

}  // namespace pearl
