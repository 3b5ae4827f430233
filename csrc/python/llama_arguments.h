// The weights of a Llama-family model from what Python gives: a config, and tensors by name.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "cpu/model/llama_weights.h"
#include "python/arguments.h"
#include "python/gil.h"

namespace pearl {

using TensorTuple = std::tuple<pybind11::object, std::string, std::vector<int64_t>>;  // memory, dtype, shape
// An open file's descriptor and path, an offset into it, dtype, shape.
using PlaceTuple = std::tuple<int, std::string, int64_t, std::string, std::vector<int64_t>>;
// A matrix of codes: memory of codes, of fp16 scales, of fp16 minimums or None; bits, group, shape.
using GroupsTuple =
    std::tuple<pybind11::object, pybind11::object, pybind11::object, int, int, std::vector<int64_t>>;
// A matrix of a GGUF file: an open file's descriptor and path, an offset into it, the type of its elements or
// blocks, shape, its name there, the rows of a head whose halves alternate or 1, and whether blocks stay
// codes.
using BlocksTuple =
    std::tuple<int, std::string, int64_t, std::string, std::vector<int64_t>, std::string, int64_t, bool>;
// A tensor that is made when its turn comes: a function without arguments that gives a TensorTuple or a
// GroupsTuple; its shape, and bits, group and has_minimums if it will have codes.
using MadeTuple = std::tuple<pybind11::typing::Callable<pybind11::object()>, std::vector<int64_t>,
                             std::optional<std::tuple<int, int, bool>>>;
using Source = std::variant<TensorTuple, PlaceTuple, GroupsTuple, BlocksTuple, MadeTuple>;
using Sources = std::map<std::string, Source>;

// Throws std::invalid_argument for a dtype that no kernels have.
DType dtype_from(const std::string& name);

// Throws Failure(kRequest) for an entry of the config that is missing or of another type; and as
// LlamaWeights. `held` keeps the memory of what is made, for as long as it is read.
SourceTensor source_from(const std::string& name, const Source& tensor,
                         std::vector<std::unique_ptr<HostMemory>>* held);
std::shared_ptr<LlamaWeights> weights_from(const pybind11::dict& config, const Sources& tensors,
                                           const Kernels& kernels, int bits,
                                           const LlamaWeights::Progress& progress);
// As the view's constructor. intermediate_size unset: the whole's.
std::shared_ptr<LlamaWeights> view_from(const std::shared_ptr<LlamaWeights>& whole,
                                        const std::vector<int>& layers, int num_own,
                                        std::optional<int> intermediate_size, const Sources& tensors,
                                        int bits);

// As the head's constructor; the config has "tap_size" and perhaps "num_tap_norms", "logits_size",
// "norm_before_residual" and "norm_output" too.
std::shared_ptr<LlamaWeights> head_from(const std::shared_ptr<LlamaWeights>& target,
                                        const pybind11::dict& config, const Sources& tensors, int bits);

}  // namespace pearl
