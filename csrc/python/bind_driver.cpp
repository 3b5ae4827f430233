// The NVIDIA driver and its devices, for Python. Without a driver, asking for one says what is missing.
#include <pybind11/pybind11.h>

#include "cuda/driver/driver.h"
#include "cuda/driver/handles.h"
#include "cuda/driver/host_driver.h"
#include "python/arguments.h"
#include "python/gil.h"

namespace py = pybind11;

namespace pearl {

void bind_driver(py::module_& m) {
  py::class_<DeviceInfo>(m, "CudaDeviceInfo", "One GPU.")
      .def_readonly("name", &DeviceInfo::name)
      .def_property_readonly(
          "compute_capability",
          [](const DeviceInfo& info) { return py::make_tuple(info.compute_major, info.compute_minor); },
          "(major, minor)");

  py::class_<Driver, std::shared_ptr<Driver>>(m, "CudaDriver",
                                              "libcuda, opened. ResourceError says what is missing: the "
                                              "library, a newer one, or devices.")
      .def(py::init<const std::string&>(), py::arg("library") = "libcuda.so.1", py::call_guard<WithoutGil>())
      .def_static("of_host", &host_driver, "For lanes over memory of the host, whose steps are functions.")
      .def_property_readonly("version", method(&Driver::version), "13000 for CUDA 13.0")
      .def_property_readonly("num_devices", method(&Driver::num_devices))
      .def("device", method(&Driver::device), py::arg("ordinal"), py::call_guard<WithoutGil>());

  py::class_<CudaStream, std::shared_ptr<CudaStream>>(
      m, "CudaStream", "A stream of a GPU, made by the driver, and destroyed with its last owner.")
      .def(py::init([](std::shared_ptr<Driver> driver, int ordinal, int priority) {
             return std::make_shared<CudaStream>(std::make_shared<Context>(std::move(driver), ordinal),
                                                 priority);
           }),
           py::arg("driver").none(false), py::arg("ordinal"), py::arg("priority") = 0,
           "It waits for no other stream. priority: of its kernels; the lower goes first.")
      .def_property_readonly(
          "handle", [](const CudaStream& self) { return reinterpret_cast<uintptr_t>(self.get()); },
          "CUstream, for as long as this lives.");
}

}  // namespace pearl
