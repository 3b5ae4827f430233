// The table of contents of pearl_rt._C: each room binds its own names.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace pearl {
void bind_sampling(py::module_& m);     // cpu/bind_sampling.cpp: noise, sample, judge
void bind_executor(py::module_& m);     // cpu/bind_executor.cpp: core sets, weights, forward
void bind_coordinator(py::module_& m);  // coordinator/bind_coordinator.cpp: lanes, programs, results
}  // namespace pearl

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native half of pearl_rt: the CPU executor, lanes and the coordinator. Links neither torch nor CUDA.";
  pearl::bind_sampling(m);
  pearl::bind_coordinator(m);  // before the executors: it binds their base class
  pearl::bind_executor(m);
}
