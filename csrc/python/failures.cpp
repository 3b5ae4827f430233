#include "python/failures.h"

#include <pybind11/pybind11.h>

#include <exception>

#include "core/failure.h"

namespace py = pybind11;

namespace pearl {
namespace {

void translate(const Failure& failure) {
  if (failure.raised) {
    try {
      std::rethrow_exception(failure.raised);
    } catch (py::error_already_set& error) {
      error.restore();
      return;
    }
  }
  using namespace py::literals;
  const char* names[] = {"RequestError", "NumericsError", "ResourceError",
                         "PearlError",   "DeviceError",   "CheckpointError"};
  const py::object type = py::module_::import("pearl_rt.errors").attr(names[static_cast<int>(failure.kind)]);
  if (failure.kind != FailureKind::kDevice || failure.device == nullptr) {
    py::set_error(type, failure.what());
    return;
  }
  const DeviceReport& report = *failure.device;
  py::set_error(type, type(failure.what(), "call"_a = report.call, "code"_a = report.code,
                           "name"_a = report.name, "text"_a = report.text, "place"_a = report.place));
}

}  // namespace

void translate_failures() {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Failure& failure) {
      translate(failure);
    }
  });
}

}  // namespace pearl
