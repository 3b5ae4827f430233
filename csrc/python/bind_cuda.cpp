// CUDA lanes for Python: the thread that launches, arrays, lanes and their captured steps. Handles are
// integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/lane/cuda_lane.h"
#include "cuda/run/issuer.h"
#include "python/arguments.h"
#include "python/gil.h"

namespace py = pybind11;

namespace pearl {

namespace {

// Memory of the host, and what else lives as long.
struct Held {
  std::unique_ptr<HostMemory> memory;
  py::object owner;
};

// Keeps something of Python's until the last C++ owner goes, on whatever thread that is.
template <typename T>
std::shared_ptr<void> keep(T held) {
  return std::shared_ptr<void>(new T(std::move(held)), [](void* last) {
    if (!Py_IsInitialized()) return;  // at exit everything goes at once
    const py::gil_scoped_acquire gil;
    delete static_cast<T*>(last);
  });
}

// A step that is a function of Python's. What it raises ends the run, and is raised again by its reader.
std::function<void()> python_step(py::object function) {
  if (function.is_none()) return nullptr;
  return [kept = keep(std::move(function))] {
    const WithGil gil;
    try {
      (*static_cast<const py::object*>(kept.get()))();
    } catch (const py::error_already_set& error) {
      Failure failure(FailureKind::kExecutor, error.what());
      failure.raised = std::current_exception();
      throw failure;
    }
  };
}

Form form_from(const std::string& name) {
  if (name == "events") return Form::kEvents;
  if (name == "graph") return Form::kGraph;
  refuse("form is '" + name + "'; it must be 'events' or 'graph'");
}

const char* form_name(Form form) { return form == Form::kEvents ? "events" : "graph"; }

template <typename T>
void set_option(CudaIssuer& issuer, T IssuerOptions::* option, T value) {
  IssuerOptions options = issuer.options();
  options.*option = value;
  issuer.set_options(options);
}

}  // namespace

void bind_cuda(py::module_& m) {
  py::class_<CudaIssuer, std::shared_ptr<CudaIssuer>>(
      m, "CudaIssuer", "The thread that launches work ahead for the CUDA lanes of a coordinator.")
      .def(py::init([](std::shared_ptr<Driver> driver, int spin_us) {
             return std::make_shared<CudaIssuer>(std::move(driver), spin_from(spin_us));
           }),
           py::arg("driver").none(false), py::arg("spin_us") = 50)
      .def_property(
          "form", [](const CudaIssuer& self) { return form_name(self.options().form); },
          [](CudaIssuer& self, const std::string& name) {
            set_option(self, &IssuerOptions::form, form_from(name));
          },
          "'events': a launch for each op; 'graph': one for each round, where none of it is on the host.")
      .def_property(
          "rounds_ahead", [](const CudaIssuer& self) { return self.options().rounds_ahead; },
          [](CudaIssuer& self, int64_t value) { set_option(self, &IssuerOptions::rounds_ahead, value); },
          "Rounds queued past the last verdict read: 1 to half of the verdict ring.")
      .def_property(
          "timed", [](const CudaIssuer& self) { return self.options().timed; },
          [](CudaIssuer& self, bool value) { set_option(self, &IssuerOptions::timed, value); },
          "Whether trace() has rows: ops are then timed on the device.")
      .def_property(
          "drafts_at_once", [](const CudaIssuer& self) { return self.options().drafts_at_once; },
          [](CudaIssuer& self, bool value) { set_option(self, &IssuerOptions::drafts_at_once, value); },
          "Whether one pass of the draft has all rows of a window: its cache then has rows of mask tokens "
          "at\n"
          "the end of the text, which others must not find.")
      .def_property_readonly(
          "host_ns_per_round", method(&CudaIssuer::host_ns_per_round),
          "What the last run cost this thread for each round, its prompt included; not idle looks.");

  py::class_<DeviceArrays, std::shared_ptr<DeviceArrays>>(
      m, "DeviceArrays", "The arrays of pearl_rt/state.py and a lane's `chunk` [B, 2], by address.")
      .def(
          py::init([](const std::map<std::string, CUdeviceptr>& addresses, int num_slots, int gamma_max,
                      int64_t capacity, int vocab_size, int draft_vocab_size, int num_stop_ids, int ring_size,
                      int prefill_chunk, int num_biased, int max_logprobs, int block_size, int num_blocks,
                      const py::object& staging, const py::object& owner) {
            const ArraySizes sizes{num_slots,        gamma_max,    capacity,   vocab_size,
                                   draft_vocab_size, num_stop_ids, ring_size,  prefill_chunk,
                                   num_biased,       max_logprobs, block_size, num_blocks};
            auto memory = std::make_unique<HostMemory>(staging, true);
            const auto address = reinterpret_cast<CUdeviceptr>(memory->data());
            const size_t num_bytes = memory->size();
            return std::make_shared<DeviceArrays>(addresses, sizes, address, num_bytes,
                                                  keep(Held{std::move(memory), owner}));
          }),
          py::arg("addresses"), py::kw_only(), py::arg("num_slots"), py::arg("gamma_max"),
          py::arg("capacity"), py::arg("vocab_size"), py::arg("draft_vocab_size"), py::arg("num_stop_ids"),
          py::arg("ring_size"), py::arg("prefill_chunk"), py::arg("num_biased") = 0,
          py::arg("max_logprobs") = -1, py::arg("block_size"), py::arg("num_blocks"), py::arg("staging"),
          py::arg("owner") = py::none(),
          "addresses: name -> data_ptr(); ring in pinned host memory; with num_biased, the ids of logit_bias "
          "that\n"
          "there is room for, those of device/logits_processors.py too; with max_logprobs, the likeliest "
          "tokens reported "
          "with each,\n"
          "those of device/logprob_ring.py. block_size, num_blocks: of this lane's KV cache. staging: pinned "
          "host "
          "memory of\n"
          "this lane alone, with the buffer protocol.\n"
          "owner: kept alive with these, the tensors for example.")
      .def_static(
          "staging_bytes",
          [](int num_slots, int gamma_max, int64_t capacity, int draft_vocab_size, int num_stop_ids,
             int prefill_chunk, int num_biased, int max_logprobs, int block_size, bool host_logits) {
            return DeviceArrays::staging_bytes(
                {num_slots, gamma_max, capacity, 0, draft_vocab_size, num_stop_ids, 0, prefill_chunk,
                 num_biased, max_logprobs, block_size},
                host_logits);
          },
          py::kw_only(), py::arg("num_slots"), py::arg("gamma_max"), py::arg("capacity"),
          py::arg("draft_vocab_size"), py::arg("num_stop_ids"), py::arg("prefill_chunk"),
          py::arg("num_biased") = 0, py::arg("max_logprobs") = -1, py::arg("block_size"),
          py::arg("host_logits") = false,
          "Bytes of staging. host_logits: beside a draft on the CPU that samples, judged by 'rejection'.");

  py::class_<CudaLane, Lane, std::shared_ptr<CudaLane>>(m, "CudaLane",
                                                        "A lane on a GPU: a stream and its captured steps.")
      .def(py::init([](std::string name, std::shared_ptr<CudaIssuer> issuer,
                       std::shared_ptr<CudaStream> stream, std::shared_ptr<DeviceArrays> arrays,
                       bool reads_target) {
             return std::make_shared<CudaLane>(std::move(name), std::move(issuer), std::move(stream),
                                               std::move(arrays), reads_target);
           }),
           py::arg("name"), py::arg("issuer").none(false), py::arg("stream").none(false),
           py::arg("arrays").none(false), py::kw_only(), py::arg("reads_target") = false,
           "stream: for this lane alone, on whose device it runs. reads_target: its passes read what the\n"
           "target's left of the same tokens, and come behind them.")
      .def(
          "add_step",
          [](CudaLane& self, std::string op, int gamma, std::string judge, std::optional<bool> keep_logits,
             int slot, bool processed, bool logprobs, uintptr_t graph, uintptr_t exec, py::object owner,
             py::object function) {
            const int keeps = keep_logits ? static_cast<int>(*keep_logits) : -1;
            self.add_step(
                {std::move(op), gamma, std::move(judge), keeps, slot, processed, logprobs},
                {python_step(std::move(function)), reinterpret_cast<CUgraph>(graph),
                 reinterpret_cast<CUgraphExec>(exec), owner.is_none() ? nullptr : keep(std::move(owner))});
          },
          py::arg("op"), py::kw_only(), py::arg("gamma") = -1, py::arg("judge") = "",
          py::arg("keep_logits") = py::none(), py::arg("slot") = -1, py::arg("processed") = false,
          py::arg("logprobs") = false, py::arg("graph") = 0, py::arg("exec") = 0,
          py::arg("owner") = py::none(), py::arg("function") = py::none(),
          "A step: prefill chunk; prefill logits (gamma, slot); score, score window (gamma); "
          "first,\n"
          "verify (gamma, judge, processed, logprobs); draft (gamma, judge, keep_logits, processed). owner: "
          "kept alive "
          "with "
          "it, the graph.\n"
          "function: in place of a graph, called with no arguments in the issuer's thread to launch the step "
          "on the\n"
          "lane's stream. What it raises ends the run, and next() raises it.");
}

}  // namespace pearl
