// Python names of the CPU executor: core sets, weights, forward passes, bandwidth.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "core/without_gil.h"
#include "cpu/machine/bandwidth.h"
#include "cpu/model/llama.h"
#include "python/arguments.h"

namespace py = pybind11;

namespace pearl {
namespace {

using TensorTuple = std::tuple<py::object, std::string, std::vector<int64_t>>;  // memory, dtype, shape
// An open file's descriptor and path, an offset into it, dtype, shape.
using PlaceTuple = std::tuple<int, std::string, int64_t, std::string, std::vector<int64_t>>;
using SourceTuple = std::variant<TensorTuple, PlaceTuple>;
using SegmentTuple = std::tuple<int, std::vector<int32_t>, int64_t, int>;  // slot, ids, start, num_logits
using BlockTables = std::vector<std::vector<int32_t>>;

// The entry of that name.
template <typename T>
T field(const py::dict& config, const char* name, const char* wanted) {
  if (!config.contains(name)) refuse(std::string("config has no '") + name + "'");
  const py::object value = config[name];
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    refuse(std::string(name) + " is " + py::repr(value).cast<std::string>() + "; it must be " + wanted);
  }
}

LlamaConfig config_from(const py::dict& d) {
  const auto number = [&](const char* name) { return field<int>(d, name, "an integer of 32 bits"); };
  const auto flag = [&](const char* name) { return field<bool>(d, name, "True or False"); };
  LlamaConfig c{};
  c.vocab_size = number("vocab_size");
  c.hidden_size = number("hidden_size");
  c.intermediate_size = number("intermediate_size");
  c.num_hidden_layers = number("num_hidden_layers");
  c.num_attention_heads = number("num_attention_heads");
  c.num_key_value_heads = number("num_key_value_heads");
  c.head_dim = number("head_dim");
  c.rms_norm_eps = field<float>(d, "rms_norm_eps", "a number");
  c.attention_bias = flag("attention_bias");
  c.qk_norm = flag("qk_norm");
  c.tie_word_embeddings = flag("tie_word_embeddings");
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

SourceTensor source_from(const std::string& name, const SourceTuple& tensor,
                         std::vector<std::unique_ptr<HostMemory>>* held) {
  if (const auto* in_memory = std::get_if<TensorTuple>(&tensor)) {
    const auto& [object, type, shape] = *in_memory;
    const HostMemory& memory = *held->emplace_back(std::make_unique<HostMemory>(object, false));
    return {type_from(name, type), shape, memory.data(), memory.size(), -1, 0, name, ""};
  }
  const auto& [descriptor, path, offset, type, shape] = std::get<PlaceTuple>(tensor);
  return {type_from(name, type), shape, nullptr, 0, descriptor, offset, name, path};
}

std::shared_ptr<LlamaWeights> make_weights(const py::dict& config,
                                           const std::map<std::string, SourceTuple>& tensors,
                                           const std::string& dtype, const std::optional<std::string>& isa,
                                           const LlamaWeights::Progress& progress) {
  LlamaWeights::Tensors sources;
  std::vector<std::unique_ptr<HostMemory>> held;
  for (const auto& [name, tensor] : tensors) sources.emplace(name, source_from(name, tensor, &held));
  const LlamaConfig c = config_from(config);
  const WithoutGil released;
  return std::make_shared<LlamaWeights>(c, sources, dtype_from(dtype), choose_isa(isa.value_or("")),
                                        progress);
}

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
    logits.emplace_back(std::vector<py::ssize_t>{static_cast<py::ssize_t>(rows), executor.vocab_size()});
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
      .def_property_readonly("cpus", method(&CoreSet::cpus))
      .def("pin_calling_thread", method(&CoreSet::pin_calling_thread))
      .def("__len__", method(&CoreSet::size));

  py::class_<LlamaWeights, std::shared_ptr<LlamaWeights>>(m, "LlamaWeights")
      .def(py::init(&make_weights), py::arg("config"), py::arg("tensors"), py::arg("dtype"),
           py::arg("isa") = py::none(), py::arg("progress") = py::none(),
           "tensors: name -> (memory, dtype, shape), or (descriptor, path, offset, dtype, shape) of an open "
           "file;\n"
           "memory: its bytes, row-major, with the buffer protocol.")
      .def_property_readonly("isa", [](const LlamaWeights& w) { return name_of(w.kernels().isa); })
      .def_property_readonly("weight_bytes", method(&LlamaWeights::step_bytes))
      .def_property_readonly("memory_bytes", method(&LlamaWeights::memory_bytes));

  py::class_<LlamaExecutor, Executor, std::shared_ptr<LlamaExecutor>>(m, "LlamaExecutor")
      .def(py::init([](std::shared_ptr<LlamaWeights> weights, std::shared_ptr<CoreSet> core_set,
                       int num_slots, int64_t max_model_len, const Array<float>& cos, const Array<float>& sin,
                       std::optional<int> num_blocks, std::optional<int> block_size) {
             const int half = weights->config().head_dim / 2;
             check_table("cos", cos, max_model_len, half);
             check_table("sin", sin, max_model_len, half);
             return std::make_shared<LlamaExecutor>(std::move(weights), std::move(core_set), num_slots,
                                                    max_model_len, cos.data(), sin.data(), num_blocks,
                                                    block_size);
           }),
           py::arg("weights").none(false), py::arg("core_set").none(false), py::arg("num_slots"),
           py::arg("max_model_len"), py::arg("cos"), py::arg("sin"), py::arg("num_blocks") = py::none(),
           py::arg("block_size") = py::none(),
           "cos, sin: [max_model_len, head_dim / 2] fp32, copied.\n"
           "num_blocks: of the KV cache; None: every slot has its own. block_size: positions of each; None: "
           "up\n"
           "to 256.")
      .def("forward_batch", &forward_batch, py::arg("segments"), py::arg("block_tables") = py::none(),
           "[(slot, token_ids, start, num_logits)] -> [logits [num_logits, vocab_size]]\n"
           "block_tables: the KV blocks of each segment in order; None: of its slot.")
      .def("time_linears", method(&LlamaExecutor::time_linears), py::arg("rows"), py::arg("repeats"),
           py::call_guard<WithoutGil>(), "Seconds of the linear layers of one step, best of repeats")
      .def("poison", method(&LlamaExecutor::poison), py::arg("slot"), py::arg("position"),
           "NaN in the rows of a slot's own blocks, for tests")
      .def("poison_block", method(&LlamaExecutor::poison_block), py::arg("block"), py::arg("row"),
           "NaN in a block's rows, for tests")
      .def_property_readonly("cache_bytes", method(&LlamaExecutor::cache_bytes))
      .def_property_readonly("weight_bytes", [](const LlamaExecutor& e) { return e.weights().step_bytes(); });
}

}  // namespace pearl
