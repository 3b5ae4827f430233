// The table of contents of pearl_rt._testing: what tests call and pearl_rt does not. No wheel has it.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels/self_check.h"
#include "native/kernels_amx_emulated.h"
#include "python/arguments.h"
#include "python/failures.h"
#include "python/llama_arguments.h"

namespace py = pybind11;

namespace pearl {
void bind_blocks(py::module_& m);
void bind_core_set(py::module_& m);
void bind_grouped(py::module_& m);
void bind_sampling(py::module_& m);
void bind_scripted(py::module_& m);
}  // namespace pearl

PYBIND11_MODULE(_testing, m) {
  m.doc() = "Test doubles, and functions of pearl_rt._C that only tests call.";
  py::module_::import("pearl_rt._C");  // binds the classes that are used here
  pearl::translate_failures();
  pearl::bind_sampling(m);
  pearl::bind_scripted(m);
  pearl::bind_blocks(m);
  pearl::bind_core_set(m);
  pearl::bind_grouped(m);
  m.def(
      "emulated_weights",
      [](const py::dict& config, const pearl::Sources& tensors, const std::string& dtype, int bits) {
        const pearl::Kernels& kernels = pearl::amx_emulated_kernels(pearl::dtype_from(dtype));
        if (kernels.dtype == pearl::DType::kBfloat16) {
          pearl::checked_kernels(kernels, pearl::portable_kernels(kernels.dtype));
        }
        return pearl::weights_from(config, tensors, kernels, bits, nullptr);
      },
      py::arg("config"), py::arg("tensors"), py::arg("dtype"), py::arg("bits") = 0,
      "LlamaWeights, as _C makes them, for the kernels of AMX with tiles in plain memory.");
  m.def(
      "check_flawed_tiles",
      [](int nth) {
        pearl::checked_kernels(pearl::amx_emulated_kernels_with_a_flaw(nth),
                               pearl::portable_kernels(pearl::DType::kBfloat16));
      },
      py::arg("nth"), "The self-check of AMX, over emulated tiles whose nth matmul has one wrong sum.");
  pearl::refuse_unmade_objects(m);
}
