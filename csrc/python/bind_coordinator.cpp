// Devices, the coordinator and its results, for Python. Every wait releases the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <variant>

#include "coordinator/coordinator.h"
#include "cpu/lane/cpu_lane.h"
#include "cpu/machine/memory.h"
#include "drafters/eagle/eagle_drafter.h"
#include "drafters/stop_rule.h"
#include "python/arguments.h"
#include "python/gil.h"
#include "python/python_matcher.h"

namespace py = pybind11;

namespace pearl {

void bind_drafters(py::module_& m);  // python/drafters

namespace {

using NativeOps = std::vector<std::pair<std::string, int>>;  // (op, event or -1)
using NativeProgram =
    std::pair<int, std::vector<std::pair<NativeOps, NativeOps>>>;  // events, (prologue, body)s

OpKind op_kind(const std::string& name) {
  for (const OpName& op : kOpNames) {
    if (name == op.name && op.kind != OpKind::kRound) return op.kind;
  }
  refuse("the program has an unknown op '" + name + "'");
}

std::vector<Op> ops_from(const NativeOps& native) {
  std::vector<Op> ops;
  for (const auto& [name, event] : native) ops.push_back({op_kind(name), event});
  return ops;
}

Program program_from(const py::object& program) {
  if (!py::hasattr(program, "native")) {
    refuse("program is " + py::repr(program).cast<std::string>() +
           "; it must be a pearl_rt.strategy.program.Program");
  }
  NativeProgram native;
  try {
    native = program.attr("native")().cast<NativeProgram>();
  } catch (const py::cast_error&) {
    refuse("native() of " + py::repr(program).cast<std::string>() +
           " must give (events, [(prologue, body)]), both lists of (op, event)");
  }
  Program result;
  result.num_events = native.first;
  for (const auto& [prologue, body] : native.second)
    result.lanes.push_back({ops_from(prologue), ops_from(body)});
  return result;
}

const char* finish_name(FinishReason reason) {
  if (reason == FinishReason::kStop) return "stop";
  if (reason == FinishReason::kLength) return "length";
  if (reason == FinishReason::kError) return "error";
  return reason == FinishReason::kAbort ? "abort" : "";
}

// A coordinator may wait for steps that need the GIL.
struct StopAndDelete {
  void operator()(Coordinator* coordinator) const {
    {
      const WithoutGil release;
      coordinator->stop();
    }
    delete coordinator;
  }
};

using Owner = std::unique_ptr<Coordinator, StopAndDelete>;

Owner make_coordinator(std::vector<std::shared_ptr<Lane>> lanes, int num_slots, int gamma_max,
                       int64_t capacity, int vocab_size, std::optional<int> draft_vocab_size,
                       size_t ring_capacity, std::optional<int> num_blocks, std::optional<int> block_size,
                       std::optional<int64_t> draft_capacity, bool prefix_caching, int candidates) {
  check_between("candidates", candidates, 1, Branches::kMostWindows);
  check_between("num_slots", num_slots, 1, kMostSlots);
  check_between("capacity", capacity, 2, kMostTokens);
  check_between("draft_capacity", draft_capacity.value_or(capacity), 1, capacity);
  check_between("gamma_max", gamma_max, 0, kLongestWindow);
  check_between("ring_capacity", static_cast<int64_t>(std::min<size_t>(ring_capacity, kMostIds + 1)), 0,
                kMostIds);
  check_between("vocab_size", vocab_size, 1, kMostIds);
  check_between("draft_vocab_size", draft_vocab_size.value_or(1), 1, kMostIds);
  int size = 0;  // of the first lane that has one
  for (const auto& lane : lanes) {
    if (size == 0 && lane != nullptr) size = lane->block_size();
  }
  size = block_size.value_or(size == 0 ? BlockPool::size_for(capacity) : size);
  const int64_t blocks = num_blocks ? *num_blocks : BlockPool::blocks_of_slots(num_slots, capacity, size);
  BlockPool::check(blocks, size);
  check_memory(State::bytes(num_slots, gamma_max, capacity, vocab_size, draft_vocab_size.value_or(vocab_size),
                            size, candidates) +
                   (prefix_caching ? PrefixCache::bytes(static_cast<double>(blocks), size) : 0.0) +
                   24.0 * static_cast<double>(blocks) +
                   static_cast<double>(std::max<size_t>(ring_capacity, 2 * static_cast<size_t>(num_slots))) *
                       (sizeof(RoundResult) + 8.0 * (gamma_max + 1)),
               "a coordinator of " + std::to_string(num_slots) + " slots");
  auto state = std::make_unique<State>(num_slots, gamma_max, capacity, vocab_size,
                                       draft_vocab_size.value_or(vocab_size), static_cast<int>(blocks), size,
                                       prefix_caching, candidates);
  state->draft_capacity = draft_capacity.value_or(capacity);
  return Owner(new Coordinator(std::move(state), std::move(lanes), ring_capacity));
}

int64_t branch_blocks(int num_slots, int gamma_max, int block_size, int candidates) {
  check_between("num_slots", num_slots, 1, kMostSlots);
  check_between("gamma_max", gamma_max, 0, kLongestWindow);
  check_between("candidates", candidates, 1, Branches::kMostWindows);
  BlockPool::check(1, block_size);
  return Branches::num_blocks(num_slots, candidates, int64_t{gamma_max} + 1, block_size);
}

// forward for one sequence -> [num_logits, logits_size] fp32.
py::array_t<float> forward(Executor& self, int slot, const std::vector<int32_t>& token_ids, int64_t start,
                           int num_logits, int num_open) {
  const auto num_tokens = static_cast<int>(token_ids.size());
  check_between("num_logits", num_logits, 0, num_tokens);
  check_between("num_open", num_open, 0, num_tokens);
  py::array_t<float> logits({num_logits, self.logits_size()});
  Segment segment{slot, token_ids.data(), num_tokens, start, num_logits, logits.mutable_data()};
  segment.num_open = num_open;
  const WithoutGil release;
  self.forward(&segment, 1);
  return logits;
}

// forward for one sequence, without logits -> its taps [num_tokens, tap_size] fp32.
py::array_t<float> forward_taps(Executor& self, int slot, const std::vector<int32_t>& token_ids,
                                int64_t start) {
  const auto num_tokens = static_cast<int>(token_ids.size());
  py::array_t<float> taps(std::vector<py::ssize_t>{num_tokens, static_cast<py::ssize_t>(self.tap_size())});
  if (self.tap_size() < 1) refuse("the executor keeps no taps; make it with tap_layers");
  Segment segment{slot, token_ids.data(), num_tokens, start, 0, nullptr};
  segment.taps = taps.mutable_data();
  const WithoutGil release;
  self.forward(&segment, 1);
  return taps;
}

// forward of a head for one sequence -> the logits behind its last token [logits_size] fp32.
py::array_t<float> forward_head(Executor& self, int slot, const std::vector<int32_t>& token_ids,
                                int64_t start, const std::optional<Array<float>>& features) {
  const auto num_tokens = static_cast<int>(token_ids.size());
  if (features &&
      (features->ndim() != 2 || features->shape(0) != num_tokens || features->shape(1) != self.tap_size())) {
    refuse("features are not [" + std::to_string(num_tokens) + ", " + std::to_string(self.tap_size()) +
           "]; give the taps of each token");
  }
  if (num_tokens < 1) refuse("no tokens were given; a head is fed one at least");
  py::array_t<float> logits(self.logits_size());
  Segment segment{slot, token_ids.data(), num_tokens, start, 1, logits.mutable_data()};
  segment.features = features ? features->data() : nullptr;
  const WithoutGil release;
  self.forward(&segment, 1);
  return logits;
}

using TraceTuple = std::tuple<std::string, std::string, int64_t, int64_t, int64_t>;
std::vector<TraceTuple> trace_rows(const Coordinator& self) {
  std::vector<TraceTuple> rows;
  for (int lane = 0; lane < self.num_lanes(); ++lane) {
    const Trace* trace = nullptr;
    {
      const WithoutGil release;
      trace = &self.trace(lane);
    }
    for (const TraceRow& row : trace->rows()) {
      rows.emplace_back(self.lane(lane).name(), op_name(row.op), row.round, row.begin_ns, row.end_ns);
    }
  }
  return rows;
}

// [tokens][1 + k] of (id, logprob, rank), or nothing.
using LogprobTuple = std::tuple<int32_t, float, int64_t>;
using LogprobRows = std::optional<std::vector<std::vector<LogprobTuple>>>;
LogprobRows rows_of(const std::vector<Logprob>& entries, size_t num_tokens) {
  if (entries.empty()) return std::nullopt;
  if (num_tokens == 0 || entries.size() % num_tokens != 0) {
    refuse("there are " + std::to_string(entries.size()) + " log-probabilities, which are not those of " +
           std::to_string(num_tokens) + " tokens");
  }
  const size_t each = entries.size() / num_tokens;
  std::vector<std::vector<LogprobTuple>> tokens(num_tokens);
  for (size_t i = 0; i < entries.size(); ++i) {
    const Logprob& entry = entries[i];
    tokens[i / each].emplace_back(entry.token_id, entry.logprob, entry.rank);
  }
  return tokens;
}

}  // namespace

void bind_coordinator(py::module_& m) {
  py::class_<Executor, std::shared_ptr<Executor>>(m, "Executor", "A model and its KV cache, behind one call.")
      .def("forward", &forward, py::arg("slot"), py::arg("token_ids"), py::arg("start"),
           py::arg("num_logits"), py::arg("num_open") = 0,
           "-> [num_logits, logits_size] fp32. num_open: of the last tokens, how many see each other.")
      .def("forward_taps", &forward_taps, py::arg("slot"), py::arg("token_ids"), py::arg("start"),
           "-> [num_tokens, tap_size] fp32.")
      .def("forward_head", &forward_head, py::arg("slot"), py::arg("token_ids"), py::arg("start"),
           py::arg("features") = py::none(),
           "-> [logits_size] fp32, behind the last token. features: [num_tokens, tap_size] the taps that "
           "each\n"
           "is fed with; None: one token, fed with what the head gave at the last token of the slot.")
      .def_property_readonly("vocab_size", method(&Executor::vocab_size))
      .def_property_readonly("logits_size", method(&Executor::logits_size))
      .def_property_readonly("tap_size", method(&Executor::tap_size))
      .def_property_readonly("max_model_len", method(&Executor::max_model_len))
      .def_property_readonly("num_slots", method(&Executor::num_slots))
      .def_property_readonly("num_blocks", method(&Executor::num_blocks))
      .def_property_readonly("block_size", method(&Executor::block_size));

  py::class_<CpuDevice, std::shared_ptr<CpuDevice>>(
      m, "Device",
      "A set of cores and its one persistent thread, which keeps to them (none: it runs where it may).")
      .def(py::init([](std::vector<int> cpus, int spin_us) {
             return std::make_shared<CpuDevice>(std::move(cpus), spin_from(spin_us));
           }),
           py::arg("cpus") = std::vector<int>{}, py::arg("spin_us") = 2000)
      .def_property_readonly("cpus", method(&CpuDevice::cpus));

  py::class_<Lane, std::shared_ptr<Lane>>(m, "Lane", "A queue of ops on some device.")
      .def_property_readonly("name", method(&Lane::name));

  bind_drafters(m);

  using Model = std::shared_ptr<Executor>;
  using Works = std::variant<Model, std::shared_ptr<Drafter>>;
  py::class_<CpuLane, Lane, std::shared_ptr<CpuLane>>(m, "CpuLane", "A lane on CPU cores.")
      .def(py::init([](std::string name, Works executor, std::shared_ptr<CpuDevice> device,
                       const std::optional<std::shared_ptr<EagleDrafter>>& given) {
             const auto taps = given.value_or(nullptr);
             auto* const model = std::get_if<Model>(&executor);
             if (taps != nullptr && model == nullptr) refuse("taps are of a model, and a drafter was given");
             if (model != nullptr && *model != nullptr) {
               auto kept = taps == nullptr ? nullptr : taps->taps();
               return std::make_shared<CpuLane>(std::move(name), std::move(device), std::move(*model),
                                                std::move(kept));
             }
             auto* const drafter = std::get_if<std::shared_ptr<Drafter>>(&executor);
             if (drafter == nullptr || *drafter == nullptr) {
               refuse("executor is None; give a model, or a drafter");
             }
             return std::make_shared<CpuLane>(std::move(name), std::move(device), std::move(*drafter));
           }),
           py::arg("name"), py::arg("executor").none(false), py::arg("device").none(false),
           py::arg("taps") = py::none(),
           "executor: a model, or for the draft's lane a Drafter that is none. Lanes that share a device\n"
           "take turns on its thread. taps: of a target, the drafter of its draft's lane that is fed them.");

  py::class_<RoundResult>(m, "RoundResult", "What one round committed for one sequence.")
      .def_readonly("request_id", &RoundResult::request_id)
      .def_readonly("error", &RoundResult::error)
      .def_readonly("round", &RoundResult::round)
      .def_readonly("slot", &RoundResult::slot)
      .def_readonly("token_ids", &RoundResult::token_ids)
      .def_readonly("accept_len", &RoundResult::accept_len)
      .def_readonly("num_judged", &RoundResult::num_judged)
      .def_readonly("pending_before", &RoundResult::pending_before)
      .def_readonly("is_refused", &RoundResult::is_refused)
      .def_readonly("forced", &RoundResult::forced)
      .def_readonly("certain", &RoundResult::certain)
      .def_readonly("num_cached_tokens", &RoundResult::num_cached_tokens)
      .def_property_readonly(
          "logprobs", [](const RoundResult& r) { return rows_of(r.logprobs, r.token_ids.size()); },
          "For each token its own and the k likeliest, as (id, logprob, rank); None unless "
          "asked for.")
      .def(
          "prompt_logprobs",
          [](const RoundResult& r, size_t prompt_len) { return rows_of(r.prompt_logprobs, prompt_len - 1); },
          py::arg("prompt_len"), "As logprobs, of each token of the prompt but the first. Round 0 has them.")
      .def_property_readonly("finish_reason",
                             [](const RoundResult& r) { return finish_name(r.finish_reason); })
      .def_readonly("t_ns", &RoundResult::t_ns);

  py::class_<Request>(m, "Request", "One sequence to generate.")
      .def(py::init([](std::vector<int32_t> prompt, int gamma, float temperature, uint64_t seed,
                       int64_t max_tokens, std::vector<int32_t> eos, std::vector<int32_t> stops,
                       bool ignore_eos, int32_t top_k, float top_p, float min_p, float repetition_penalty,
                       float presence_penalty, float frequency_penalty,
                       std::vector<std::pair<int32_t, float>> logit_bias, int64_t min_tokens,
                       int num_logprobs, int num_prompt_logprobs, bool adapts, bool shares,
                       const py::object& grammar, const std::string& draft_stop, double draft_stop_at) {
             Request request{std::move(prompt),
                             gamma,
                             temperature,
                             seed,
                             max_tokens,
                             std::move(eos),
                             std::move(stops),
                             ignore_eos,
                             {},
                             num_logprobs,
                             num_prompt_logprobs,
                             shares,
                             adapts};
             request.transform = {min_tokens,
                                  {},
                                  std::move(logit_bias),
                                  repetition_penalty,
                                  frequency_penalty,
                                  presence_penalty,
                                  {top_k, top_p, min_p},
                                  mask_from(grammar)};
             request.stop = stop_from(draft_stop, draft_stop_at);
             return request;
           }),
           py::arg("prompt_ids"), py::kw_only(), py::arg("gamma") = 0, py::arg("temperature") = 0.0f,
           py::arg("seed") = 0, py::arg("max_tokens") = 128, py::arg("eos_ids") = std::vector<int32_t>{},
           py::arg("stop_ids") = std::vector<int32_t>{}, py::arg("ignore_eos") = false, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0f, py::arg("min_p") = 0.0f, py::arg("repetition_penalty") = 1.0f,
           py::arg("presence_penalty") = 0.0f, py::arg("frequency_penalty") = 0.0f,
           py::arg("logit_bias") = std::vector<std::pair<int32_t, float>>{}, py::arg("min_tokens") = 0,
           py::arg("num_logprobs") = -1, py::arg("num_prompt_logprobs") = -1, py::arg("adapts") = false,
           py::arg("shares") = true, py::arg("grammar") = py::none(), py::arg("draft_stop") = "none",
           py::arg("draft_stop_at") = 0.0,
           "grammar: of the answer, as pearl_rt.grammar.matcher.Form; lanes call its matcher. draft_stop: "
           "auto, thompson, or confidence, adaedl or marginal with its number: pearl_rt/reference/stops.py.");

  py::class_<Coordinator, Owner>(m, "Coordinator",
                                 "Runs a program over a target's lane and a draft's, natively.")
      .def(py::init(&make_coordinator), py::arg("lanes"), py::kw_only(), py::arg("num_slots") = 1,
           py::arg("gamma_max") = 8, py::arg("capacity"), py::arg("vocab_size"),
           py::arg("draft_vocab_size") = py::none(), py::arg("ring_capacity") = 1024,
           py::arg("num_blocks") = py::none(), py::arg("block_size") = py::none(),
           py::arg("draft_capacity") = py::none(), py::arg("prefix_caching") = false,
           py::arg("candidates") = 1,
           "lanes: the target's, and the draft's if there is one; each is one coordinator's at a time.\n"
           "num_blocks: KV blocks of all sequences together; None: every slot has its own. block_size: the\n"
           "lanes' own, or None. draft_capacity: tokens of a sequence that the draft can be fed; None: all.\n"
           "prefix_caching: prompts begin in blocks that hold their tokens, where all lanes can: "
           "finds_prefixes. candidates: windows of a sequence, which begin with different tokens, 1 to 8; "
           "for\n"
           "more than 1 executors have num_slots times as many slots, and branch_blocks() more blocks.")
      .def_static("branch_blocks", &branch_blocks, py::kw_only(), py::arg("num_slots"), py::arg("gamma_max"),
                  py::arg("block_size"), py::arg("candidates"),
                  "KV blocks of the windows beside the first, behind those of the sequences.")
      .def(
          "start",
          [](Coordinator& self, const py::object& program, const std::vector<Request>& requests,
             const std::string& judge, std::vector<int32_t> windows, bool is_ordered) {
            const Program native = program_from(program);
            const JudgeKind kind = judge_from(judge);
            const WithoutGil release;
            return self.start(native, kind, requests, std::move(windows), is_ordered);
          },
          py::arg("program"), py::arg("requests"), py::arg("judge") = "rejection",
          py::arg("windows") = std::vector<int32_t>{}, py::kw_only(), py::arg("is_ordered") = true,
          "Request i runs in slot i. Returns at once, with the ids of the requests; RequestError if one\n"
          "cannot be run, or another run goes on. windows: [num_slots + 1] the longest window while so\n"
          "many slots are busy; none: each request's own gamma. Lanes on host cores take them.\n"
          "is_ordered: False for tests of programs whose lanes race; what these do is not defined.")
      .def("set_windows", method(&Coordinator::set_windows), py::arg("windows"), py::call_guard<WithoutGil>(),
           "Other windows from the next round on. Any thread.")
      .def("submit", method(&Coordinator::submit), py::arg("request"), py::call_guard<WithoutGil>(),
           "One more request for the run that goes on -> its id, or None if there is no run. Any thread.")
      .def("cancel", method(&Coordinator::cancel), py::arg("id"), py::call_guard<WithoutGil>(),
           "Ends a request within a round -> True if it had no slot yet, and nothing follows. Any thread.")
      .def("take_waiting", method(&Coordinator::take_waiting), py::call_guard<WithoutGil>(),
           "Ids of requests that never got a slot, once the run has ended.")
      .def("next", method(&Coordinator::next), py::arg("timeout_ms") = -1, py::arg("min_results") = 1,
           py::call_guard<WithoutGil>(),
           "Waits for min_results (or the end, or the time) -> what there is; None once all was handed out.\n"
           "Raises the run's error once, after the results before it.")
      .def("stop", method(&Coordinator::stop), py::call_guard<WithoutGil>(),
           "Ends the run within a round. What was verified before can still be had from next().")
      .def("forget_prefixes", method(&Coordinator::forget_prefixes), py::call_guard<WithoutGil>(),
           "Others have written to the KV caches: no prompt begins in what was there before. RequestError\n"
           "while a run goes on.")
      .def("has_place", method(&Coordinator::has_place), py::arg("request"), py::call_guard<WithoutGil>(),
           "Whether a request would get its KV blocks now, behind those that wait, and the run that goes\n"
           "on, if one does, was made for it. Any thread.")
      .def_property_readonly("num_blocks", [](const Coordinator& c) { return c.state().blocks.num_blocks(); })
      .def_property_readonly("block_size", [](const Coordinator& c) { return c.state().blocks.block_size(); })
      .def_property_readonly("num_free_blocks", method(&Coordinator::num_free_blocks),
                             "KV blocks that no slot holds; all of them while no run goes on. Any thread.")
      .def_property_readonly("finds_prefixes",
                             [](const Coordinator& c) { return c.state().prefixes.has_value(); })
      .def_property_readonly("running", method(&Coordinator::running))
      .def("trace", &trace_rows, "Rows (lane, op, round, begin_ns, end_ns) of the last request.");
}

}  // namespace pearl
