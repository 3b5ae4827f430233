#include "python/llama_arguments.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace pearl {
namespace {

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
  c.output_bias = d.contains("output_bias") && flag("output_bias");
  c.mlp_bias = d.contains("mlp_bias") && flag("mlp_bias");
  c.qk_norm = flag("qk_norm");
  c.tie_word_embeddings = flag("tie_word_embeddings");
  return c;
}

SourceTensor::Type type_from(const std::string& name, const std::string& type) {
  if (type == "float32") return SourceTensor::Type::kFloat32;
  if (type == "bfloat16") return SourceTensor::Type::kBfloat16;
  if (type == "float16") return SourceTensor::Type::kFloat16;
  throw std::invalid_argument("tensor '" + name + "' is " + type + ", not one of float32, bfloat16, float16");
}

constexpr int64_t kMostSide = 1 << 30, kMostOffset = int64_t{1} << 62;

void check_form(const std::string& name, int bits, int group, const std::vector<int64_t>& shape) {
  const bool packed = (bits == 8 && (group == 32 || group == 16)) || (bits == 4 && group == 32);
  if (!packed || shape.size() != 2) {
    refuse("tensor '" + name + "' has " + std::to_string(bits) + " bits in groups of " +
           std::to_string(group) + "; a matrix of 8 bits has groups of 32 or 16, one of 4 bits of 32");
  }
  check_between("rows of a matrix of codes", shape[0], 0, kMostSide);
  check_between("columns of a matrix of codes", shape[1], 1, kMostSide);
}

SourceTensor groups_from(const std::string& name, const GroupsTuple& tensor,
                         std::vector<std::unique_ptr<HostMemory>>* held) {
  const auto& [codes, scales, minimums, bits, group, shape] = tensor;
  check_form(name, bits, group, shape);
  const auto memory = [&](const py::object& object, const char* part, int64_t wanted) {
    const HostMemory& own = *held->emplace_back(std::make_unique<HostMemory>(object, false));
    if (static_cast<int64_t>(own.size()) != wanted) {
      refuse(std::string(part) + " of tensor '" + name + "' have " + std::to_string(own.size()) +
             " bytes; its shape needs " + std::to_string(wanted));
    }
    return own.data();
  };
  const int64_t entries = shape[0] * ((shape[1] + group - 1) / group);
  SourceTensor source{SourceTensor::Type::kFloat32, shape, nullptr, 0, -1, 0, name, ""};
  source.form = GroupForm{bits, group, bits == 4 || !minimums.is_none()};
  source.groups = {static_cast<const uint8_t*>(memory(codes, "codes", shape[0] * shape[1])),
                   static_cast<const uint16_t*>(memory(scales, "scales", 2 * entries)), nullptr};
  if (!minimums.is_none()) {
    source.groups.minimums = static_cast<const uint16_t*>(memory(minimums, "minimums", 2 * entries));
  }
  return source;
}

SourceTensor blocks_from(const std::string& name, const BlocksTuple& tensor) {
  const auto& [descriptor, path, offset, type, shape, own_name, head_rows, keeps_codes] = tensor;
  if (shape.size() != 2) refuse("tensor '" + name + "' of blocks is no matrix");
  check_between("rows of a matrix of blocks", shape[0], 0, kMostSide);
  check_between("columns of a matrix of blocks", shape[1], 1, kMostSide);
  check_between("rows of a head", head_rows, 1, kMostSide);
  check_between("bytes of a file before a tensor", offset, 0, kMostOffset);
  if (head_rows > 1 && (head_rows % 2 != 0 || shape[0] % head_rows != 0)) {
    refuse("tensor '" + name + "' has " + std::to_string(shape[0]) + " rows and heads of " +
           std::to_string(head_rows));
  }
  SourceTensor source{SourceTensor::Type::kFloat32, shape, nullptr, 0, descriptor, offset, own_name, path};
  source.head_rows = head_rows;
  source.blocks = block_type(type);
  if (source.blocks == nullptr) {
    source.type = type_from(name, type);
    return source;
  }
  if (shape[1] % source.blocks->values != 0) {
    refuse("tensor '" + name + "' has " + std::to_string(shape[1]) + " columns, no whole blocks of " + type);
  }
  if (keeps_codes) source.form = source.blocks->form;
  return source;
}

// A tensor that Python made, with the memory that it lies in.
struct Made {
  std::vector<std::unique_ptr<HostMemory>> held;
  SourceTensor tensor;
};

SourceTensor made_from(const std::string& name, const MadeTuple& tensor) {
  const auto& [make, shape, form] = tensor;
  SourceTensor source{SourceTensor::Type::kFloat32, shape, nullptr, 0, -1, 0, name, ""};
  if (form) {
    const auto& [bits, group, has_minimums] = *form;
    check_form(name, bits, group, shape);
    source.form = GroupForm{bits, group, bits == 4 || has_minimums};
  }
  // A pointer: the caller's tuple keeps the function, and copies of `source` are made without the GIL.
  source.make = [name, function = make.ptr()]() -> std::shared_ptr<const SourceTensor> {
    const WithGil held;
    const std::shared_ptr<Made> made(new Made, [](Made* it) {
      const WithGil held_too;
      delete it;
    });
    const py::object result = py::reinterpret_borrow<py::function>(function)();
    try {
      made->tensor = source_from(name, result.cast<Source>(), &made->held);
    } catch (const py::cast_error&) {
      refuse("what was made for tensor '" + name + "' is no tensor in memory");
    }
    return {made, &made->tensor};
  };
  return source;
}

void check_bits(int bits) {
  if (bits != 0 && bits != 4 && bits != 8)
    refuse("bits is " + std::to_string(bits) + "; it must be 0, 4 or 8");
}

LlamaWeights::Tensors tensors_from(const Sources& tensors, std::vector<std::unique_ptr<HostMemory>>* held) {
  LlamaWeights::Tensors sources;
  for (const auto& [name, tensor] : tensors) sources.emplace(name, source_from(name, tensor, held));
  return sources;
}

}  // namespace

SourceTensor source_from(const std::string& name, const Source& tensor,
                         std::vector<std::unique_ptr<HostMemory>>* held) {
  if (const auto* groups = std::get_if<GroupsTuple>(&tensor)) return groups_from(name, *groups, held);
  if (const auto* blocks = std::get_if<BlocksTuple>(&tensor)) return blocks_from(name, *blocks);
  if (const auto* made = std::get_if<MadeTuple>(&tensor)) return made_from(name, *made);
  if (const auto* in_memory = std::get_if<TensorTuple>(&tensor)) {
    const auto& [object, type, shape] = *in_memory;
    const HostMemory& memory = *held->emplace_back(std::make_unique<HostMemory>(object, false));
    return {type_from(name, type), shape, memory.data(), memory.size(), -1, 0, name, ""};
  }
  const auto& [descriptor, path, offset, type, shape] = std::get<PlaceTuple>(tensor);
  check_between("bytes of a file before a tensor", offset, 0, kMostOffset);
  return {type_from(name, type), shape, nullptr, 0, descriptor, offset, name, path};
}

DType dtype_from(const std::string& name) {
  if (name == "bfloat16") return DType::kBfloat16;
  if (name == "float32") return DType::kFloat32;
  throw std::invalid_argument("dtype '" + name + "' is not one of bfloat16, float32");
}

std::shared_ptr<LlamaWeights> weights_from(const py::dict& config, const Sources& tensors,
                                           const Kernels& kernels, int bits,
                                           const LlamaWeights::Progress& progress) {
  check_bits(bits);
  std::vector<std::unique_ptr<HostMemory>> held;
  const LlamaWeights::Tensors sources = tensors_from(tensors, &held);
  const LlamaConfig c = config_from(config);
  const WithoutGil released;
  return std::make_shared<LlamaWeights>(c, sources, kernels, bits, progress);
}

std::shared_ptr<LlamaWeights> view_from(const std::shared_ptr<LlamaWeights>& whole,
                                        const std::vector<int>& layers, int num_own,
                                        std::optional<int> intermediate_size, const Sources& tensors,
                                        int bits) {
  if (whole == nullptr) refuse("the weights are None; give a model's");
  check_bits(bits);
  std::vector<std::unique_ptr<HostMemory>> held;
  const LlamaWeights::Tensors sources = tensors_from(tensors, &held);
  const int inner = intermediate_size.value_or(whole->config().intermediate_size);
  const WithoutGil released;
  return std::make_shared<LlamaWeights>(whole, layers, num_own, inner, sources, bits);
}

std::shared_ptr<LlamaWeights> head_from(const std::shared_ptr<LlamaWeights>& target, const py::dict& config,
                                        const Sources& tensors, int bits) {
  if (target == nullptr) refuse("the weights are None; give the target's");
  check_bits(bits);
  std::vector<std::unique_ptr<HostMemory>> held;
  const LlamaWeights::Tensors sources = tensors_from(tensors, &held);
  LlamaConfig c = config_from(config);
  const auto number = [&](const char* name) {
    return config.contains(name) ? field<int>(config, name, "an integer of 32 bits") : 0;
  };
  const auto flag = [&](const char* name) {
    return config.contains(name) && field<bool>(config, name, "True or False");
  };
  c.tap_size = number("tap_size");
  c.num_tap_norms = number("num_tap_norms");
  c.logits_size = number("logits_size");
  c.attention_window = number("attention_window");
  check_between("attention_window", c.attention_window, 0, kMostTokens);
  c.norm_before_residual = flag("norm_before_residual");
  c.norm_output = flag("norm_output");
  if (c.tap_size < 1) refuse("tap_size is " + std::to_string(c.tap_size) + "; a head is fed 1 or more");
  const WithoutGil released;
  return std::make_shared<LlamaWeights>(target, c, sources, bits);
}

}  // namespace pearl
