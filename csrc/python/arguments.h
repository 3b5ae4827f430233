// What the bindings share to take arguments from Python safely: arrays, memory of the host, and the objects
// that methods are called on. Knows no function of ours.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "core/checks.h"

namespace pearl {

constexpr int kPlain =
    static_cast<int>(pybind11::array::c_style) | pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_;
// Contiguous and aligned: a copy, where the caller's array is neither.
template <typename T>
using Array = pybind11::array_t<T, kPlain>;

// How long a thread may poll before it sleeps.
inline std::chrono::microseconds spin_from(int spin_us) {
  constexpr int64_t kLongestSpinUs = 1'000'000;
  check_between("spin_us", spin_us, 0, kLongestSpinUs);
  return std::chrono::microseconds(spin_us);
}

// A row of logits -> its length.
inline int row_size(const char* name, const Array<float>& row) {
  if (row.ndim() != 1) {
    refuse(std::string(name) + " has " + std::to_string(row.ndim()) +
           " dimensions; it must have 1: [vocab], vocab >= 1");
  }
  if (row.size() < 1 || row.size() > kMostIds) {
    refuse(std::string(name) + " has " + std::to_string(row.size()) +
           " entries; it must be [vocab], vocab >= 1, at most " + std::to_string(kMostIds));
  }
  return static_cast<int>(row.size());
}

// The bytes of an object with the buffer protocol, held for as long as this lives; contiguous, or
// BufferError. Made and dropped with the GIL.
class HostMemory {
 public:
  HostMemory(const pybind11::handle& object, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) {
      throw pybind11::error_already_set();
    }
  }
  ~HostMemory() { PyBuffer_Release(&view_); }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  void* data() const { return view_.buf; }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

// A method whose first argument can be no None, which pybind11 hands to a pointer to a member as null.
template <typename Result, typename Class, typename... Arguments>
auto method(Result (Class::*function)(Arguments...)) {
  return [function](Class& self, Arguments... arguments) -> Result {
    return (self.*function)(std::forward<Arguments>(arguments)...);
  };
}
template <typename Result, typename Class, typename... Arguments>
auto method(Result (Class::*function)(Arguments...) const) {
  return [function](const Class& self, Arguments... arguments) -> Result {
    return (self.*function)(std::forward<Arguments>(arguments)...);
  };
}

// Makes the module's classes refuse objects that came out of __new__ alone: pybind11 would hand us memory
// that no constructor has seen.
inline void refuse_unmade_objects(const pybind11::module_& m) {
  for (const auto& [name, value] : m.attr("__dict__").cast<pybind11::dict>()) {
    if (!PyType_Check(value.ptr())) continue;
    auto* const info = pybind11::detail::get_type_info(reinterpret_cast<PyTypeObject*>(value.ptr()));
    if (info == nullptr) continue;
    info->operator_new = [](size_t) -> void* {
      throw pybind11::type_error("the object was never made: its __init__ has not been called");
    };
  }
}

}  // namespace pearl
