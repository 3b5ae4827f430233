// The table of contents of pearl_rt._C: each file bind_*.cpp binds its own names.
#include <pybind11/pybind11.h>

#include "python/arguments.h"
#include "python/failures.h"

namespace py = pybind11;

namespace pearl {
void bind_coordinator(py::module_& m);
void bind_cuda(py::module_& m);
void bind_driver(py::module_& m);
void bind_executor(py::module_& m);
void bind_engine_lock(py::module_& m);
}  // namespace pearl

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native half of pearl_rt: the CPU executor, lanes and the coordinator. Links neither torch nor CUDA.";
  pearl::translate_failures();
  pearl::bind_engine_lock(m);
  pearl::bind_coordinator(m);  // first: it binds the base classes of the executors and of CUDA lanes
  pearl::bind_executor(m);
  pearl::bind_driver(m);
  pearl::bind_cuda(m);
  pearl::refuse_unmade_objects(m);
}
