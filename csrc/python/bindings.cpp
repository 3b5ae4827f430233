// The table of contents of pearl_rt._C: each room binds its own names.
#include <pybind11/pybind11.h>

#include "python/arguments.h"

namespace py = pybind11;

namespace pearl {
void bind_sampling(py::module_& m);     // cpu/bind_sampling.cpp: noise, sample, judge
void bind_executor(py::module_& m);     // cpu/bind_executor.cpp: core sets, weights, forward
void bind_coordinator(py::module_& m);  // coordinator/bind_coordinator.cpp: lanes, programs, results
void bind_driver(py::module_& m);       // cuda/bind_driver.cpp: the NVIDIA driver and its devices
void bind_turn(py::module_& m);         // bind_turn.cpp: who uses an engine
void bind_cuda(py::module_& m);         // cuda/bind_cuda.cpp: CUDA lanes and the thread that launches
}  // namespace pearl

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native half of pearl_rt: the CPU executor, lanes and the coordinator. Links neither torch nor CUDA.";
  pearl::bind_turn(m);
  pearl::bind_sampling(m);
  pearl::bind_coordinator(m);  // before the executors: it binds their base class
  pearl::bind_executor(m);
  pearl::bind_driver(m);
  pearl::bind_cuda(m);  // behind the coordinator: it binds the base class of lanes
  pearl::refuse_unmade_objects(m);
}
