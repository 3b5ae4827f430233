// The scripted executor, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "native/scripted_executor.h"
#include "python/arguments.h"

namespace py = pybind11;

namespace pearl {

void bind_scripted(py::module_& m) {
  py::class_<ScriptedExecutor, Executor, std::shared_ptr<ScriptedExecutor>>(
      m, "ScriptedExecutor", "A test executor: logits are a function of the tokens in its cache.")
      .def(py::init([](int vocab_size, int64_t max_model_len, int num_slots, uint64_t rule, double divergence,
                       double scale, std::pair<int, int> delay_us, uint64_t delay_seed, double step_us,
                       int64_t nan_at, int64_t throw_at, std::string error, int num_blocks, int block_size,
                       bool has_taps, std::vector<int32_t> head_ids) {
             return std::make_shared<ScriptedExecutor>(
                 Script{vocab_size, max_model_len, num_slots, rule, divergence, scale, delay_us.first,
                        delay_us.second, delay_seed, step_us, nan_at, throw_at, std::move(error), num_blocks,
                        block_size, has_taps, std::move(head_ids)});
           }),
           py::kw_only(), py::arg("vocab_size") = 16, py::arg("max_model_len") = 256,
           py::arg("num_slots") = 1, py::arg("rule") = 0, py::arg("divergence") = 0.0, py::arg("scale") = 4.0,
           py::arg("delay_us") = std::pair<int, int>{0, 0}, py::arg("delay_seed") = 0,
           py::arg("step_us") = 0.0, py::arg("nan_at") = -1, py::arg("throw_at") = -1,
           py::arg("error") = "scripted failure", py::arg("num_blocks") = 0, py::arg("block_size") = 0,
           py::arg("has_taps") = false, py::arg("head_ids") = std::vector<int32_t>{})
      .def_property_readonly("num_forwards", method(&ScriptedExecutor::num_forwards))
      .def_property_readonly("num_tokens", method(&ScriptedExecutor::num_tokens))
      .def_property_readonly("num_copied", method(&ScriptedExecutor::num_copied), "Rows, between blocks.")
      .def_property_readonly("max_position", method(&ScriptedExecutor::max_position));
}

}  // namespace pearl
