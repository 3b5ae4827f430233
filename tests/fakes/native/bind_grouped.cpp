// One linear layer over weights in groups, as the executor computes it: packing, codes of rows, matmul.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/machine/memory.h"
#include "cpu/weights/pack_grouped.h"
#include "native/kernels_amx_emulated.h"
#include "python/arguments.h"
#include "python/llama_arguments.h"

namespace py = pybind11;

namespace pearl {
namespace {

const Kernels& kernels_named(const std::string& isa, DType dtype) {
  return isa == "amx_emulated" ? amx_emulated_kernels(dtype) : kernels_of(isa, dtype);
}

// Between rows of inputs, codes and outputs lie bytes of NaN, which no kernel may read or write.
py::array_t<float> grouped_linear(const Array<float>& x, const std::vector<Source>& sources,
                                  const std::string& isa, const std::string& dtype, int bits) {
  std::vector<std::unique_ptr<HostMemory>> held;
  std::vector<SourceTensor> tensors;
  for (const Source& source : sources) tensors.push_back(source_from("weight", source, &held));
  std::vector<const SourceTensor*> parts;
  std::vector<std::shared_ptr<const SourceTensor>> there;
  std::vector<SourceRow> rows;
  for (const SourceTensor& tensor : tensors) {
    parts.push_back(&tensor);
    there.push_back(present(tensor));
    for (int64_t i = 0; i < tensor.shape[0]; ++i) rows.push_back({there.back().get(), i, bits});
  }
  const int n = static_cast<int>(rows.size()), k = static_cast<int>(x.shape(1));
  const int num_rows = static_cast<int>(x.shape(0));
  const std::optional<GroupForm> form = form_of(parts, bits);
  if (!form) refuse("these tensors make a matrix of elements");
  const PackedMatrix matrix = packed_shape(n, k, form);
  rows.resize(int64_t{matrix.num_blocks} * kLanes);
  const DType type = dtype_from(dtype);
  HugeBuffer packed(matrix.bytes(type), "a test");
  pack_blocks(matrix, rows, k, type, 0, matrix.num_blocks, packed.as<char>());

  const Kernels& kernels = kernels_named(isa, type);
  const GroupedRow row{matrix.k, form->group};
  const int64_t stride = round_up(row.bytes(), 64) + 64, element = size_of(type);
  std::vector<char> codes(round_up(num_rows, kTileRows) * stride, static_cast<char>(0xFF));
  std::vector<char> elements(k * element);
  for (int m = 0; m < num_rows; ++m) {
    kernels.convert(x.data() + int64_t{m} * k, 1.0f, k, elements.data());
    kernels.quantize_row(elements.data(), k, row, codes.data() + m * stride);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> out(num_rows * (n + 1), nan);
  GroupedMatmulArgs a{*form, codes.data(), stride, packed.as<char>(), {}};
  a.out.rows = num_rows;
  a.out.k = matrix.k;
  a.out.num_blocks = matrix.num_blocks;
  a.out.num_cols = n;
  a.out.epilogue = Epilogue::kStore;
  a.out.out = out.data();
  a.out.out_stride = n + 1;
  if (kernels.prepare_thread != nullptr) kernels.prepare_thread();
  kernels.grouped_matmul(a);
  py::array_t<float> result({num_rows, n});
  for (int m = 0; m < num_rows; ++m) {
    if (out[m * (n + 1) + n] == out[m * (n + 1) + n]) refuse("a column that is not there was written");
    std::memcpy(result.mutable_data(m), out.data() + m * (n + 1), n * sizeof(float));
  }
  return result;
}

py::array_t<float> unpacked(const Source& source, int64_t k, int bits) {
  std::vector<std::unique_ptr<HostMemory>> held;
  const SourceTensor tensor = source_from("weight", source, &held);
  const int64_t n = tensor.shape[0];
  const PackedMatrix matrix = packed_shape(n, k, form_of({&tensor}, bits));
  std::vector<SourceRow> rows(int64_t{matrix.num_blocks} * kLanes);
  const auto there = present(tensor);
  for (int64_t i = 0; i < n; ++i) rows[i] = {there.get(), i, bits};
  HugeBuffer packed(matrix.bytes(DType::kFloat32), "a test");
  pack_blocks(matrix, rows, k, DType::kFloat32, 0, matrix.num_blocks, packed.as<char>());
  py::array_t<float> out({n, k});
  for (int64_t i = 0; i < n; ++i) {
    unpack_row(matrix, DType::kFloat32, packed.as<char>(), i, static_cast<int>(k), out.mutable_data(i));
  }
  return out;
}

}  // namespace

void bind_grouped(py::module_& m) {
  m.def("grouped_linear", &grouped_linear, py::arg("x"), py::arg("sources"), py::arg("isa"), py::arg("dtype"),
        py::arg("bits") = 0, "x [m, k] times the transpose of the sources, one below the other -> [m, n]");
  m.def("unpacked", &unpacked, py::arg("source"), py::arg("k"), py::arg("bits") = 0,
        "The values of a matrix after packing, [n, k] fp32");
}

}  // namespace pearl
