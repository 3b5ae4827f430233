// Where the window of a draft model ends before gamma, even at nothing: by the draft's own rows, by how
// many of its drafts stood, and by chance. numpy's twin: pearl_rt/reference/stops.py, which says why the law
// is kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/request.h"
#include "coordinator/state.h"
#include "core/step_costs.h"
#include "drafters/rate.h"

namespace pearl {

// The rule of that name. Throws Failure(kRequest) for a name or a number that none has.
StopRule stop_from(const std::string& name, double at);

// The windows of one slot. By counts only: no clock, and no noise but that of Purpose::kStop, which decides
// nothing else. What is counted are drafts up to the first that fell, whose positions are final; drafts
// behind it are not, for their positions are drafted again with the noise that they had.
class WindowStop {
 public:
  // Before a window: takes in the verdicts on earlier ones. at_once: one pass has the rows of all of it.
  // costs: of kAuto, which is no rule without them, and for a slot that does not adapt.
  void begin(State* state, int slot, bool at_once = false, const StepCosts* costs = nullptr);
  // Whether there is a rule.
  bool is_on() const { return rule_.kind != StopKind::kNone; }
  // Before each pass of the draft for a token of the window: whether it is worth one.
  bool goes_on();
  // Behind it: whether the window has the token of this row, as it is sampled from. Else it ends before it.
  bool takes(const float* logits /*[vocab]*/, int vocab, float temperature);
  // That token, once it was drawn.
  void add(int64_t position, int32_t token);
  // Whether the window ended before its first row, which was computed.
  bool has_refused() const { return has_refused_; }

 private:
  static constexpr int kClasses = 8;  // of the likeliest token's probability
  struct Drafted {
    int64_t position;
    int32_t token;
    int row_class;
  };

  void learn(const int32_t* tokens, int64_t committed, int64_t pending);
  // In steps of the target: of one more pass, and of one more row that the target scores.
  double pass_cost() const;
  double row_cost() const;

  uint64_t request_id_ = 0, seed_ = 0;
  bool is_used_ = false;
  StopRule rule_;
  bool is_on_final_ = false;  // the window follows final tokens
  bool at_once_ = false;
  std::vector<Drafted> drafted_;  // not judged yet
  // kAdaEdl
  double threshold_ = 0, acceptance_ = 0;
  // kConfidence and kThompson too: the last row was doubtful, or chance says so; the window ends behind it
  bool is_last_ = false;
  Rate all_;  // kThompson too
  // kMarginal, and kAuto
  Rate rates_[kClasses];
  int quiet_ = 0;                   // windows without a pass, since the last one
  int passes_ = 0, row_class_ = 0;  // of this window; of its last row
  int rows_ = 0;                    // that were taken
  bool has_refused_ = false;
  double chance_ = 1, tokens_ = 1, spent_ = 1;  // that all of it stand; expected of the round; its cost
  const StepCosts* costs_ = nullptr;            // kAuto
  int room_ = 0;                                // of a window that one pass fills
};

}  // namespace pearl
