// The lock of an engine, for Python: free, held by one caller in a `with`, or by the queue of requests.
//
// In C++, because Python runs the handlers of signals between its own instructions and never inside a call of
// C++: a Ctrl-C finds the engine either not taken, or taken by a `with` that gives it back. Guarded by the
// GIL.
#include <pybind11/pybind11.h>
#include <unistd.h>

namespace py = pybind11;

#include "python/arguments.h"
namespace pearl {

namespace {

enum class Holder { kNobody, kCaller, kQueue };

class Turn {
 public:
  // A copy of this object in the child of a fork is not at home there, nor are the engine's threads.
  bool is_home() const { return getpid() == process_; }
  bool is_free_for(Holder holder) const {
    return holder_ == Holder::kNobody || (holder_ == holder && holder == Holder::kQueue);
  }
  void take(Holder holder) { holder_ = holder; }
  void end(Holder holder) {
    if (holder_ == holder) holder_ = Holder::kNobody;
  }

 private:
  Holder holder_ = Holder::kNobody;
  const pid_t process_ = getpid();
};

// check_open() and _taken() are those of pearl_rt.scheduling.engine_lock.Turn, which raise. Between them and
// take() no Python runs.
template <Holder holder>
void take(const py::object& self) {
  Turn& turn = self.cast<Turn&>();
  self.attr("check_open")();
  if (!turn.is_free_for(holder)) {
    self.attr("_taken")();
    return;
  }
  turn.take(holder);
}

}  // namespace

void bind_turn(py::module_& m) {
  py::class_<Turn>(m, "Turn", "The lock of an engine: see pearl_rt.scheduling.engine_lock.")
      .def(py::init<>())
      .def_property_readonly("is_home", method(&Turn::is_home),
                             "Whether this is the process that made it, and no fork.")
      .def("__enter__", &take<Holder::kCaller>, "One caller takes it; while another has it, _taken() raises.")
      .def("__exit__", [](Turn& self, const py::args&) { self.end(Holder::kCaller); })
      .def("take_for_queue", &take<Holder::kQueue>, "The queue takes it; nothing happens if it has it.")
      .def("end_for_queue", [](Turn& self) { self.end(Holder::kQueue); }, "Nothing if the queue has it not.");
  m.def(
      "never_destroy", [](const py::object& object) { object.inc_ref(); }, py::arg("object"),
      "Keeps an object until the process is gone, the interpreter's own end included.");
}

}  // namespace pearl
