// Python names of the CPU executor: core sets, weights, forward passes, bandwidth.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/machine/bandwidth.h"
#include "cpu/model/llama.h"
#include "python/arguments.h"
#include "python/gil.h"
#include "python/llama_arguments.h"

namespace py = pybind11;

namespace pearl {
namespace {

using SegmentTuple = std::tuple<int, std::vector<int32_t>, int64_t, int>;  // slot, ids, start, num_logits
using BlockTables = std::vector<std::vector<int32_t>>;

void check_table(const char* name, const Array<float>& table, int64_t length, int half) {
  if (table.ndim() == 2 && table.shape(0) == length && table.shape(1) == half) return;
  std::string found;
  for (py::ssize_t i = 0; i < table.ndim(); ++i) found += (i ? ", " : "") + std::to_string(table.shape(i));
  refuse(std::string(name) + " has shape [" + found +
         "]; it must be [max_model_len, head_dim / 2], which is [" + std::to_string(length) + ", " +
         std::to_string(half) + "]");
}

std::vector<py::array_t<float>> forward_batch(LlamaExecutor& executor,
                                              const std::vector<SegmentTuple>& tuples,
                                              const std::optional<BlockTables>& tables) {
  if (tables && tables->size() != tuples.size()) {
    throw std::invalid_argument(std::to_string(tables->size()) + " block tables for " +
                                std::to_string(tuples.size()) + " segments; give one for each");
  }
  std::vector<py::array_t<float>> logits;
  std::vector<Segment> segments;
  for (const auto& [slot, ids, start, num_logits] : tuples) {
    // More rows than tokens, or fewer than none, are refused before any is written.
    const auto rows = std::clamp<int64_t>(num_logits, 0, static_cast<int64_t>(ids.size()));
    logits.emplace_back(std::vector<py::ssize_t>{static_cast<py::ssize_t>(rows), executor.logits_size()});
    segments.push_back(
        {slot, ids.data(), static_cast<int>(ids.size()), start, num_logits, logits.back().mutable_data()});
    if (!tables) continue;
    const std::vector<int32_t>& table = (*tables)[segments.size() - 1];
    static constexpr int32_t kNone = -1;  // an empty table is not no table
    segments.back().block_table = table.empty() ? &kNone : table.data();
    segments.back().num_blocks = static_cast<int>(table.size());
  }
  const WithoutGil released;
  executor.forward(segments.data(), static_cast<int>(segments.size()));
  return logits;
}

}  // namespace

void bind_executor(py::module_& m) {
  m.def("available_isas", &available_isas, "Instruction sets that run here, fastest first");
  m.def("detect_isa", [] { return available_isas().front(); });
  m.def(
      "available_bytes",
      [](const std::string& meminfo, const std::string& group) -> std::optional<int64_t> {
        const int64_t bytes = available_bytes(meminfo, group);
        return bytes == std::numeric_limits<int64_t>::max() ? std::nullopt : std::optional(bytes);
      },
      py::arg("meminfo") = "/proc/meminfo", py::arg("group") = "/sys/fs/cgroup",
      "Memory that can still be had without swapping; None: unknown. Tests bring files of their own.");

  py::class_<CoreSet, std::shared_ptr<CoreSet>>(m, "CoreSet")
      .def(py::init<std::vector<int>, bool>(), py::arg("cpus"), py::arg("is_pinned") = false,
           "One thread for each CPU, the caller's among them. is_pinned: they keep to these CPUs.")
      .def_property_readonly("cpus", method(&CoreSet::cpus))
      .def("__len__", method(&CoreSet::size));
  m.def("measure_bandwidth", &measure_bandwidth, py::arg("core_set"), py::arg("bytes"), py::arg("seconds"),
        py::call_guard<WithoutGil>(), "Bytes per second that the cores read from a buffer of that size");

  py::class_<LlamaWeights, std::shared_ptr<LlamaWeights>>(m, "LlamaWeights")
      .def(
          py::init([](const py::typing::Dict<py::str, py::object>& config, const Sources& tensors,
                      const std::string& dtype, const std::optional<std::string>& isa,
                      const std::optional<LlamaWeights::Progress>& progress, int bits) {
            const Kernels& kernels = kernels_of(isa.value_or(""), dtype_from(dtype));
            return weights_from(config, tensors, kernels, bits, progress.value_or(nullptr));
          }),
          py::arg("config"), py::arg("tensors"), py::arg("dtype"), py::arg("isa") = py::none(),
          py::arg("progress") = py::none(), py::arg("bits") = 0,
          "tensors: name -> (memory, dtype, shape), or (descriptor, path, offset, dtype, shape) of an open\n"
          "file, or (codes, scales, minimums or None, bits, group, shape) of Groups; memory: its bytes,\n"
          "row-major, with the buffer protocol. Or (descriptor, path, offset, type, shape, name, head_rows,\n"
          "keeps_codes) of a GGUF file's blocks, or (function, shape, (bits, group, has_minimums) or None):\n"
          "the function gives the tensor in memory when its turn comes.\n"
          "bits: 8 or 4, to which wider matrices are rounded; 0: none.")
      .def(
          "view",
          [](const std::shared_ptr<LlamaWeights>& self, const std::vector<int>& layers, int num_own,
             std::optional<int> intermediate_size, const Sources& tensors,
             int bits) { return view_from(self, layers, num_own, intermediate_size, tensors, bits); },
          py::arg("layers"), py::kw_only(), py::arg("num_own") = 0, py::arg("intermediate_size") = py::none(),
          py::arg("tensors") = Sources{}, py::arg("bits") = 0,
          "A model of these layers of this one, not copied, then num_own layers of `tensors`, by the "
          "numbers\n"
          "behind them, of an intermediate size of their own, with a final norm.")
      .def(
          "head",
          [](const std::shared_ptr<LlamaWeights>& self, const py::typing::Dict<py::str, py::object>& config,
             const Sources& tensors, int bits) { return head_from(self, config, tensors, bits); },
          py::arg("config"), py::arg("tensors"), py::kw_only(), py::arg("bits") = 0,
          "A head for this model (EAGLE-3): one layer that is fed a token and tap_size numbers of the row\n"
          "before it. config: a model's, and tap_size, num_tap_norms, logits_size, norm_before_residual,\n"
          "norm_output and attention_window, positions that a row attends to (0: all); the embedding is this "
          "model's where tensors have none.")
      .def_property_readonly("isa", [](const LlamaWeights& w) { return w.kernels().isa; })
      .def_property_readonly("weight_bytes", method(&LlamaWeights::step_bytes))
      .def_property_readonly("memory_bytes", method(&LlamaWeights::memory_bytes));

  py::class_<LlamaExecutor, Executor, std::shared_ptr<LlamaExecutor>>(m, "LlamaExecutor")
      .def(py::init([](std::shared_ptr<LlamaWeights> weights, std::shared_ptr<CoreSet> core_set,
                       int num_slots, int64_t max_model_len, const Array<float>& cos, const Array<float>& sin,
                       std::optional<int> num_blocks, std::optional<int> block_size,
                       std::vector<int> tap_layers) {
             const int half = weights->config().head_dim / 2;
             check_table("cos", cos, max_model_len, half);
             check_table("sin", sin, max_model_len, half);
             return std::make_shared<LlamaExecutor>(std::move(weights), std::move(core_set), num_slots,
                                                    max_model_len, cos.data(), sin.data(), num_blocks,
                                                    block_size, std::move(tap_layers));
           }),
           py::arg("weights").none(false), py::arg("core_set").none(false), py::arg("num_slots"),
           py::arg("max_model_len"), py::arg("cos"), py::arg("sin"), py::arg("num_blocks") = py::none(),
           py::arg("block_size") = py::none(), py::arg("tap_layers") = std::vector<int>{},
           "cos, sin: [max_model_len, head_dim / 2] fp32, copied. num_blocks: of the KV cache; None:\n"
           "every slot has its own. block_size: positions of each; None: up to 256.\n"
           "tap_layers: whose inputs are the taps of a token, ascending.")
      .def("forward_batch", &forward_batch, py::arg("segments"), py::arg("block_tables") = py::none(),
           "[(slot, token_ids, start, num_logits)] -> [logits [num_logits, logits_size]]\n"
           "block_tables: the KV blocks of each segment in order; None: of its slot.")
      .def("time_linears", method(&LlamaExecutor::time_linears), py::arg("rows"), py::arg("repeats"),
           py::call_guard<WithoutGil>(), "Seconds of the linear layers of one step, best of repeats")
      .def_property_readonly("cache_bytes", [](const LlamaExecutor& e) { return e.cache().bytes(); })
      .def_property_readonly("weight_bytes", [](const LlamaExecutor& e) { return e.weights().step_bytes(); });
}

}  // namespace pearl
