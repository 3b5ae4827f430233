// The weights of a Llama-family model from what Python gives: a config, and tensors by name.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
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
using Sources = std::map<std::string, std::variant<TensorTuple, PlaceTuple>>;

// Throws std::invalid_argument for a dtype that no kernels have.
DType dtype_from(const std::string& name);

// Throws Failure(kRequest) for an entry of the config that is missing or of another type; and as
// LlamaWeights.
std::shared_ptr<LlamaWeights> weights_from(const pybind11::dict& config, const Sources& tensors,
                                           const Kernels& kernels, const LlamaWeights::Progress& progress);

}  // namespace pearl
