// How a Failure of ours is raised in Python: as the error of pearl_rt.errors of its kind.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#include "core/failure.h"

namespace pearl {

inline void translate(const Failure& failure) {
  if (failure.raised) {
    try {
      std::rethrow_exception(failure.raised);
    } catch (pybind11::error_already_set& error) {
      error.restore();
      return;
    }
  }
  using namespace pybind11::literals;
  const char* names[] = {"RequestError", "NumericsError", "ResourceError",
                         "PearlError",   "DeviceError",   "CheckpointError"};
  const pybind11::object type =
      pybind11::module_::import("pearl_rt.errors").attr(names[static_cast<int>(failure.kind)]);
  if (failure.kind != FailureKind::kDevice || failure.device == nullptr) {
    pybind11::set_error(type, failure.what());
    return;
  }
  const DeviceReport& report = *failure.device;
  pybind11::set_error(type, type(failure.what(), "call"_a = report.call, "code"_a = report.code,
                                 "name"_a = report.name, "text"_a = report.text, "place"_a = report.place));
}

// Once for each module whose functions throw Failure.
inline void translate_failures() {
  pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Failure& failure) {
      translate(failure);
    }
  });
}

}  // namespace pearl
