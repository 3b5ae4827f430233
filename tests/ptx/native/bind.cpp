// pearl_rt._ptx: the executor for Python. No wheel has it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>

#include "ptx/native/opcodes/lanes.h"

namespace py = pybind11;

namespace ptx {

namespace {

const Opcodes& opcodes() {
  static const Opcodes table = [] {
    Opcodes made;
    add_integers(&made);
    add_floats(&made);
    add_comparisons(&made);
    add_conversions(&made);
    add_moves(&made);
    add_memory(&made);
    add_copies(&made);
    add_matrices(&made);
    add_wgmma(&made);
    return made;
  }();
  return table;
}

using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Slots = std::vector<std::tuple<int32_t, int32_t, uint64_t>>;

std::vector<Constant> constants_of(const Slots& slots) {
  std::vector<Constant> made;
  for (const auto& [slot, bytes, value] : slots) made.push_back({slot, bytes, value});
  return made;
}

// code: [n, 7] opcode, guard, negated, first operand, target, first touched, touched.
std::unique_ptr<Kernel> kernel_of(const Ints& code, const std::vector<int32_t>& operands,
                                  const std::vector<int32_t>& touched, const Slots& constants,
                                  const Slots& params, const std::array<int32_t, 10>& specials,
                                  int32_t num_slots, int32_t num_constant_slots, int32_t num_predicates,
                                  int32_t num_threads, int32_t granule, int32_t global_granule) {
  auto kernel = std::make_unique<Kernel>();
  kernel->operands = operands;
  kernel->touched = touched;
  kernel->constants = constants_of(constants);
  kernel->params = constants_of(params);
  kernel->specials = specials;
  kernel->num_slots = num_slots;
  kernel->num_constant_slots = num_constant_slots;
  kernel->num_predicates = num_predicates;
  kernel->num_threads = num_threads;
  kernel->granule = granule;
  kernel->global_granule = global_granule;
  const auto rows = code.unchecked<2>();
  for (py::ssize_t row = 0; row < rows.shape(0); ++row) {
    const Opcode& opcode = opcodes().at(static_cast<size_t>(rows(row, 0)));
    kernel->code.push_back({opcode.run, kernel->operands.data() + rows(row, 3), rows(row, 1),
                            rows(row, 2) != 0, opcode.kind, rows(row, 4),
                            kernel->touched.data() + rows(row, 5), rows(row, 6)});
  }
  return kernel;
}

using Ran = std::pair<uint64_t, std::vector<uint8_t>>;  // instructions; which ranges were stored into
using Found = std::variant<Ran, Fault>;

Found launch(const Kernel& kernel, const std::array<uint32_t, 3>& grid, const std::vector<uint64_t>& params,
             const std::vector<Range>& ranges, uint32_t shared_bytes, bool global_races, bool dependent,
             const std::vector<uint8_t>& unfinished, uint64_t seed, uint64_t most_instructions) {
  const auto breathe = [] {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
  const Launch asked{grid,      params,     ranges, shared_bytes,      global_races,
                     dependent, unfinished, seed,   most_instructions, breathe};
  py::gil_scoped_release no_gil;
  try {
    Machine machine(kernel, asked);
    const uint64_t count = machine.run();
    return Ran(count, machine.stored());
  } catch (const Fault& fault) {
    return fault;
  }
}

}  // namespace

}  // namespace ptx

PYBIND11_MODULE(_ptx, m) {
  using namespace ptx;
  m.doc() = "Runs kernels that were compiled to PTX, on the host, for tests.";
  py::class_<Kernel>(m, "Kernel", "A decoded kernel: see tests/ptx/decode.py.")
      .def(py::init(&kernel_of), py::kw_only(), py::arg("code"), py::arg("operands"), py::arg("touched"),
           py::arg("constants"), py::arg("params"), py::arg("specials"), py::arg("num_slots"),
           py::arg("num_constant_slots"), py::arg("num_predicates"), py::arg("num_threads"),
           py::arg("granule"), py::arg("global_granule"));
  py::class_<Fault>(m, "Fault", "What a check found, and where.")
      .def_readonly("kind", &Fault::kind)
      .def_readonly("pc", &Fault::pc)
      .def_readonly("warp", &Fault::warp)
      .def_readonly("lane", &Fault::lane)
      .def_readonly("address", &Fault::address)
      .def_readonly("size", &Fault::size)
      .def_readonly("others", &Fault::others)
      .def_readonly("values", &Fault::values)
      .def_readonly("program", &Fault::program);
  m.def("launch", &launch, py::kw_only(), py::arg("kernel"), py::arg("grid"), py::arg("params"),
        py::arg("ranges"), py::arg("shared_bytes"), py::arg("global_races"), py::arg("dependent"),
        py::arg("unfinished"), py::arg("seed"), py::arg("most_instructions"),
        "Runs all programs: how many instructions its warps ran and which ranges they stored into, or a "
        "Fault.");
  m.def(
      "opcodes",
      [] {
        std::map<std::string, std::pair<int, std::string>> found;
        for (size_t i = 0; i < opcodes().size(); ++i) {
          found.insert_or_assign(opcodes()[i].name, std::pair(static_cast<int>(i), opcodes()[i].operands));
        }
        return found;
      },
      "By name: the number of an opcode, and how its operands are given.");
  m.attr("SHARED_BASE") = kSharedBase;
}
