// Python names of the CPU executor: core sets, weights, forward passes, bandwidth.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/without_gil.h"
#include "cpu/machine/bandwidth.h"
#include "cpu/model/llama.h"

namespace py = pybind11;

namespace pearl {
namespace {

using TensorTuple = std::tuple<uintptr_t, std::string, std::vector<int64_t>>;  // address, dtype, shape
// An open file's descriptor and path, an offset into it, dtype, shape.
using PlaceTuple = std::tuple<int, std::string, int64_t, std::string, std::vector<int64_t>>;
using SourceTuple = std::variant<TensorTuple, PlaceTuple>;
using SegmentTuple = std::tuple<int, std::vector<int32_t>, int64_t, int>;  // slot, ids, start, num_logits
using BlockTables = std::vector<std::vector<int32_t>>;

LlamaConfig config_from(const py::dict& d) {
  const auto number = [&](const char* name) { return d[name].cast<int>(); };
  LlamaConfig c{};
  c.vocab_size = number("vocab_size");
  c.hidden_size = number("hidden_size");
  c.intermediate_size = number("intermediate_size");
  c.num_hidden_layers = number("num_hidden_layers");
  c.num_attention_heads = number("num_attention_heads");
  c.num_key_value_heads = number("num_key_value_heads");
  c.head_dim = number("head_dim");
  c.rms_norm_eps = d["rms_norm_eps"].cast<float>();
  c.attention_bias = d["attention_bias"].cast<bool>();
  c.qk_norm = d["qk_norm"].cast<bool>();
  c.tie_word_embeddings = d["tie_word_embeddings"].cast<bool>();
  return c;
}

DType dtype_from(const std::string& name) {
  if (name == "bfloat16") return DType::kBfloat16;
  if (name == "float32") return DType::kFloat32;
  throw std::invalid_argument("dtype '" + name + "' is not one of bfloat16, float32");
}

SourceTensor::Type type_from(const std::string& name, const std::string& type) {
  if (type == "float32") return SourceTensor::Type::kFloat32;
  if (type == "bfloat16") return SourceTensor::Type::kBfloat16;
  if (type == "float16") return SourceTensor::Type::kFloat16;
  throw std::invalid_argument("tensor '" + name + "' is " + type + ", not one of float32, bfloat16, float16");
}

SourceTensor source_from(const std::string& name, const SourceTuple& tensor) {
  if (const auto* held = std::get_if<TensorTuple>(&tensor)) {
    const auto& [address, type, shape] = *held;
    return {type_from(name, type), shape, reinterpret_cast<const void*>(address), -1, 0, name, ""};
  }
  const auto& [descriptor, path, offset, type, shape] = std::get<PlaceTuple>(tensor);
  return {type_from(name, type), shape, nullptr, descriptor, offset, name, path};
}

std::shared_ptr<LlamaWeights> make_weights(const py::dict& config,
                                           const std::map<std::string, SourceTuple>& tensors,
                                           const std::string& dtype, const std::optional<std::string>& isa,
                                           const LlamaWeights::Progress& progress) {
  LlamaWeights::Tensors sources;
  for (const auto& [name, tensor] : tensors) sources.emplace(name, source_from(name, tensor));
  const LlamaConfig c = config_from(config);
  const WithoutGil released;
  return std::make_shared<LlamaWeights>(c, sources, dtype_from(dtype), choose_isa(isa.value_or("")),
                                        progress);
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
    logits.emplace_back(std::vector<py::ssize_t>{std::max(num_logits, 0), executor.vocab_size()});
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
  m.def("measure_bandwidth", &measure_bandwidth, py::arg("core_set"), py::arg("bytes"), py::arg("seconds"),
        py::call_guard<WithoutGil>(), "Bytes per second that the cores read from a buffer of that size");

  py::class_<CoreSet, std::shared_ptr<CoreSet>>(m, "CoreSet")
      .def(py::init<std::vector<int>>(), py::arg("cpus"))
      .def_property_readonly("cpus", &CoreSet::cpus)
      .def("pin_calling_thread", &CoreSet::pin_calling_thread)
      .def("__len__", &CoreSet::size);

  py::class_<LlamaWeights, std::shared_ptr<LlamaWeights>>(m, "LlamaWeights")
      .def(py::init(&make_weights), py::arg("config"), py::arg("tensors"), py::arg("dtype"),
           py::arg("isa") = py::none(), py::arg("progress") = py::none())
      .def_property_readonly("isa", [](const LlamaWeights& w) { return name_of(w.kernels().isa); })
      .def_property_readonly("weight_bytes", &LlamaWeights::step_bytes)
      .def_property_readonly("memory_bytes", &LlamaWeights::memory_bytes);

  py::class_<LlamaExecutor, Executor, std::shared_ptr<LlamaExecutor>>(m, "LlamaExecutor")
      .def(py::init([](std::shared_ptr<LlamaWeights> weights, std::shared_ptr<CoreSet> core_set,
                       int num_slots, int64_t max_model_len, uintptr_t cos, uintptr_t sin,
                       std::optional<int> num_blocks, std::optional<int> block_size) {
             return std::make_shared<LlamaExecutor>(std::move(weights), std::move(core_set), num_slots,
                                                    max_model_len, reinterpret_cast<const float*>(cos),
                                                    reinterpret_cast<const float*>(sin), num_blocks,
                                                    block_size);
           }),
           py::arg("weights"), py::arg("core_set"), py::arg("num_slots"), py::arg("max_model_len"),
           py::arg("cos_ptr"), py::arg("sin_ptr"), py::arg("num_blocks") = py::none(),
           py::arg("block_size") = py::none(),
           "num_blocks: of the KV cache; None: every slot has its own. block_size: positions of each; None: "
           "up\n"
           "to 256.")
      .def("forward_batch", &forward_batch, py::arg("segments"), py::arg("block_tables") = py::none(),
           "[(slot, token_ids, start, num_logits)] -> [logits [num_logits, vocab_size]]\n"
           "block_tables: the KV blocks of each segment in order; None: of its slot.")
      .def("time_linears", &LlamaExecutor::time_linears, py::arg("rows"), py::arg("repeats"),
           py::call_guard<WithoutGil>(), "Seconds of the linear layers of one step, best of repeats")
      .def("poison", &LlamaExecutor::poison, py::arg("slot"), py::arg("position"),
           "NaN in the rows of a slot's own blocks, for tests")
      .def("poison_block", &LlamaExecutor::poison_block, py::arg("block"), py::arg("row"),
           "NaN in a block's rows, for tests")
      .def_property_readonly("cache_bytes", &LlamaExecutor::cache_bytes)
      .def_property_readonly("weight_bytes", [](const LlamaExecutor& e) { return e.weights().step_bytes(); });
}

}  // namespace pearl
