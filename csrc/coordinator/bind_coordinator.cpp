// Devices, the coordinator and its results, for Python. Every wait releases the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "coordinator/coordinator.h"
#include "cpu/cpu_lane.h"

namespace py = pybind11;

namespace pearl {

void bind_scripted(py::module_& m);  // cpu/bind_scripted.cpp: Executor, ScriptedExecutor

namespace {

using NativeOps = std::vector<std::pair<std::string, int>>;  // (op, event or -1)
using NativeProgram =
    std::pair<int, std::vector<std::pair<NativeOps, NativeOps>>>;  // events, (prologue, body)s

OpKind op_kind(const std::string& name) {
  if (name == "prefill") return OpKind::kPrefill;
  if (name == "prefill context") return OpKind::kPrefillContext;
  if (name == "first") return OpKind::kFirst;
  if (name == "draft") return OpKind::kDraft;
  if (name == "score") return OpKind::kScore;
  if (name == "score window") return OpKind::kScoreWindow;
  if (name == "verify") return OpKind::kVerify;
  if (name == "record") return OpKind::kRecord;
  if (name == "wait") return OpKind::kWait;
  throw Failure(FailureKind::kRequest, "the program has an unknown op '" + name + "'");
}

std::vector<Op> ops_from(const NativeOps& native) {
  std::vector<Op> ops;
  for (const auto& [name, event] : native) ops.push_back({op_kind(name), event});
  return ops;
}

Program program_from(const py::object& program) {
  const auto native = program.attr("native")().cast<NativeProgram>();
  Program result;
  result.num_events = native.first;
  for (const auto& [prologue, body] : native.second)
    result.lanes.push_back({ops_from(prologue), ops_from(body)});
  return result;
}

JudgeKind judge_from(const std::string& name) {
  if (name == "rejection") return JudgeKind::kRejection;
  if (name == "coupled") return JudgeKind::kCoupled;
  throw Failure(FailureKind::kRequest, "judge is '" + name + "'; it must be 'rejection' or 'coupled'");
}

const char* finish_name(FinishReason reason) {
  if (reason == FinishReason::kStop) return "stop";
  return reason == FinishReason::kLength ? "length" : "";
}

std::unique_ptr<Coordinator> make_coordinator(std::shared_ptr<Executor> target,
                                              std::shared_ptr<CpuDevice> target_device,
                                              std::shared_ptr<Executor> draft,
                                              std::shared_ptr<CpuDevice> draft_device, int num_slots,
                                              int gamma_max, int64_t capacity, size_t ring_capacity) {
  if ((draft == nullptr) != (draft_device == nullptr)) {
    throw Failure(FailureKind::kRequest, "a draft executor needs a draft device, and the other way round");
  }
  if (num_slots < 1 || capacity < 2 || gamma_max < 0) {
    throw Failure(FailureKind::kRequest, "num_slots must be >= 1, capacity >= 2 and gamma_max >= 0");
  }
  for (const Executor* executor : {target.get(), draft.get()}) {
    if (executor == nullptr) continue;
    if (executor->num_slots() < num_slots || executor->max_model_len() < capacity) {
      throw Failure(FailureKind::kRequest, "an executor holds " + std::to_string(executor->num_slots()) +
                                               " sequences of " + std::to_string(executor->max_model_len()) +
                                               " tokens; " + std::to_string(num_slots) + " of " +
                                               std::to_string(capacity) + " were asked for");
    }
  }
  const int draft_vocab = draft == nullptr ? target->vocab_size() : draft->vocab_size();
  auto state = std::make_unique<State>(num_slots, gamma_max, capacity, target->vocab_size(), draft_vocab);
  std::vector<std::unique_ptr<Lane>> lanes;
  lanes.push_back(std::make_unique<CpuLane>("target", std::move(target_device), std::move(target)));
  if (draft != nullptr) {
    lanes.push_back(std::make_unique<CpuLane>("draft", std::move(draft_device), std::move(draft)));
  }
  return std::make_unique<Coordinator>(std::move(state), std::move(lanes), ring_capacity);
}

py::list trace_rows(const Coordinator& self) {
  py::list rows;
  for (int lane = 0; lane < self.num_lanes(); ++lane) {
    for (const TraceRow& row : self.trace(lane).rows()) {
      rows.append(
          py::make_tuple(self.lane(lane).name(), op_name(row.op), row.round, row.begin_ns, row.end_ns));
    }
  }
  return rows;
}

void translate(const Failure& failure) {
  const char* names[] = {"RequestError", "NumericsError", "ResourceError", "PearlError"};
  const py::object type = py::module_::import("pearl_rt.errors").attr(names[static_cast<int>(failure.kind)]);
  py::set_error(type, failure.what());
}

}  // namespace

void bind_coordinator(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Failure& failure) {
      translate(failure);
    }
  });
  bind_scripted(m);

  py::class_<CpuDevice, std::shared_ptr<CpuDevice>>(
      m, "Device",
      "A set of cores and its one persistent thread, pinned to the first of them (none: not pinned).")
      .def(py::init([](std::vector<int> cpus, int spin_us) {
             return std::make_shared<CpuDevice>(std::move(cpus), std::chrono::microseconds(spin_us));
           }),
           py::arg("cpus") = std::vector<int>{}, py::arg("spin_us") = 2000)
      .def_property_readonly("cpus", &CpuDevice::cpus);

  py::class_<RoundResult>(m, "RoundResult", "What one round committed for one sequence.")
      .def_readonly("round", &RoundResult::round)
      .def_readonly("slot", &RoundResult::slot)
      .def_readonly("token_ids", &RoundResult::token_ids)
      .def_readonly("accept_len", &RoundResult::accept_len)
      .def_readonly("num_judged", &RoundResult::num_judged)
      .def_readonly("pending_before", &RoundResult::pending_before)
      .def_property_readonly("finish_reason",
                             [](const RoundResult& r) { return finish_name(r.finish_reason); })
      .def_readonly("t_ns", &RoundResult::t_ns);

  py::class_<Request>(m, "Request", "One sequence to generate.")
      .def(py::init([](std::vector<int32_t> prompt, int gamma, float temperature, uint64_t seed,
                       int64_t max_tokens, std::vector<int32_t> eos, std::vector<int32_t> stops,
                       bool ignore_eos) {
             return Request{std::move(prompt), gamma,          temperature,      seed,
                            max_tokens,        std::move(eos), std::move(stops), ignore_eos};
           }),
           py::arg("prompt_ids"), py::arg("gamma") = 0, py::arg("temperature") = 0.0f, py::arg("seed") = 0,
           py::arg("max_tokens") = 128, py::arg("eos_ids") = std::vector<int32_t>{},
           py::arg("stop_ids") = std::vector<int32_t>{}, py::arg("ignore_eos") = false);

  py::class_<Coordinator>(m, "Coordinator", "Runs a program over a target's lane and a draft's, natively.")
      .def(py::init(&make_coordinator), py::arg("target_executor"), py::arg("target_device"),
           py::arg("draft_executor").none(true) = nullptr, py::arg("draft_device").none(true) = nullptr,
           py::kw_only(), py::arg("num_slots") = 1, py::arg("gamma_max") = 8, py::arg("capacity"),
           py::arg("ring_capacity") = 1024)
      .def(
          "start",
          [](Coordinator& self, const py::object& program, const std::vector<Request>& requests,
             const std::string& judge) {
            const Program native = program_from(program);
            const JudgeKind kind = judge_from(judge);
            const py::gil_scoped_release release;
            self.start(native, kind, requests);
          },
          py::arg("program"), py::arg("requests"), py::arg("judge") = "rejection",
          "Request i runs in slot i. Returns at once; RequestError if it cannot be run or another runs.")
      .def("next", &Coordinator::next, py::arg("timeout_ms") = -1, py::arg("min_results") = 1,
           py::call_guard<py::gil_scoped_release>(),
           "Waits for min_results (or the end, or the time) -> what there is; None once all was handed out.\n"
           "Raises the run's error once, after the results before it.")
      .def("stop", &Coordinator::stop, py::call_guard<py::gil_scoped_release>(),
           "Ends the run within a round. What was verified before can still be had from next().")
      .def_property_readonly("running", &Coordinator::running)
      .def("trace", &trace_rows, "Rows (lane, op, round, begin_ns, end_ns) of the last request.");
}

}  // namespace pearl
