#include "cuda/lane/step_table.h"

#include <algorithm>
#include <utility>

#include "core/checks.h"
#include "core/failure.h"

namespace pearl {

namespace {

// What an op depends on.
struct Fields {
  bool gamma = false, judge = false, keep_logits = false, slot = false, processed = false, logprobs = false;
};

const std::map<std::string, Fields>& fields_of_ops() {
  static const std::map<std::string, Fields> fields = {
      {"join", {.gamma = true, .judge = true, .processed = true, .logprobs = true}},
      {"prefill chunk", {}},
      {"prefill logits", {.gamma = true, .slot = true}},
      {"first", {.gamma = true, .judge = true, .processed = true, .logprobs = true}},
      {"draft", {.gamma = true, .judge = true, .keep_logits = true, .processed = true}},
      {"score", {.gamma = true}},
      {"score window", {.gamma = true}},
      {"verify", {.gamma = true, .judge = true, .processed = true, .logprobs = true}},
  };
  return fields;
}

// The key without what its op does not depend on.
StepKey reduced(StepKey key) {
  const auto found = fields_of_ops().find(key.op);
  if (found == fields_of_ops().end()) {
    std::string known;
    for (const auto& [name, fields] : fields_of_ops()) known += (known.empty() ? "" : ", ") + name;
    refuse("no step is called '" + key.op + "'; known are " + known);
  }
  const Fields& fields = found->second;
  if (!fields.gamma) key.gamma = -1;
  if (!fields.judge) key.judge.clear();
  if (!fields.keep_logits) key.keep_logits = -1;
  if (!fields.slot) key.slot = -1;
  key.processed = fields.processed ? std::max(key.processed, 0) : -1;
  key.logprobs = fields.logprobs ? std::max(key.logprobs, 0) : -1;
  if ((fields.gamma && key.gamma < 0) || (fields.judge && key.judge.empty()) ||
      (fields.keep_logits && key.keep_logits < 0) || (fields.slot && key.slot < 0)) {
    refuse("step '" + key.op + "' needs" + (fields.gamma ? " gamma" : "") + (fields.judge ? " judge" : "") +
           (fields.keep_logits ? " keep_logits" : "") + (fields.slot ? " slot" : ""));
  }
  return key;
}

}  // namespace

StepKey run_key(const State& state) {
  StepKey key;
  key.gamma = state.longest_gamma;
  key.judge = name_of(state.judge);
  key.keep_logits = 0;
  key.processed = key.logprobs = 0;
  for (int slot = 0; slot < state.num_slots; ++slot) {
    if (!state.running(slot)) continue;
    if (state.judge == JudgeKind::kRejection && state.temperature[slot] > 0.0f) key.keep_logits = 1;
    if (state.is_processed(slot)) key.processed = 1;
    if (state.num_logprobs[slot] >= 0) key.logprobs = 1;
  }
  return key;
}

std::string StepKey::text() const {
  std::string fields;
  const auto add = [&](const std::string& field) { fields += (fields.empty() ? " for " : ", ") + field; };
  if (gamma >= 0) add("gamma " + std::to_string(gamma));
  if (!judge.empty()) add("judge " + judge);
  if (keep_logits >= 0) add(keep_logits ? "logits kept" : "no logits kept");
  if (slot >= 0) add("slot " + std::to_string(slot));
  if (processed > 0) add("processed");
  if (logprobs > 0) add("logprobs");
  return op + fields;
}

void StepTable::add(StepKey key, Step step) {
  key = reduced(std::move(key));
  if (!step.function && (step.graph == nullptr || step.exec == nullptr)) {
    refuse("step " + key.text() + " has a handle that is 0, and no function");
  }
  steps_[std::move(key)] = std::move(step);
}

bool StepTable::has(const StepKey& key) const { return steps_.count(reduced(key)) > 0; }

const Step& StepTable::find(StepKey key, const std::string& lane) const {
  key = reduced(std::move(key));
  auto found = steps_.find(key);
  if (found == steps_.end() && key.op == "first") {
    StepKey verify = key;
    verify.op = "verify";
    found = steps_.find(verify);
  }
  if (found != steps_.end()) return found->second;
  std::string known;
  for (const auto& [other, step] : steps_) known += (known.empty() ? "" : "; ") + other.text();
  refuse("the " + lane + " lane has no step " + key.text() + ": capture it first; captured are " +
         (known.empty() ? "none" : known));
}

}  // namespace pearl
