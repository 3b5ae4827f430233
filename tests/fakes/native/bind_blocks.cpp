// KV blocks, for tests: which are free, and NaN in the rows of some.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "cache/block_pool.h"
#include "cpu/model/llama.h"
#include "python/arguments.h"

namespace py = pybind11;

namespace pearl {

namespace {

// NaN in every row of a block from `row` on, in every layer.
void poison_block(const LlamaExecutor& executor, int block, int row) {
  check_between("block", block, 0, executor.num_blocks() - 1);
  check_between("row", row, 0, executor.block_size());
  const LlamaConfig& config = executor.weights().config();
  const std::vector<uint16_t> nan_bf16(config.head_dim, 0x7FC0);
  const std::vector<float> nan_fp32(config.head_dim, std::numeric_limits<float>::quiet_NaN());
  const bool bf16 = executor.weights().dtype() == DType::kBfloat16;
  const void* nan = bf16 ? static_cast<const void*>(nan_bf16.data()) : nan_fp32.data();
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (int head = 0; head < config.num_key_value_heads; ++head) {
      for (int r = row; r < executor.block_size(); ++r) {
        executor.cache().store(layer, block, head, r, nan, nan);
      }
    }
  }
}

// NaN in every KV row of a slot's own blocks from `position` on.
void poison(const LlamaExecutor& executor, int slot, int64_t position) {
  check_between("slot", slot, 0, executor.num_slots() - 1);
  check_between("position", position, 0, executor.max_model_len());
  const int64_t size = executor.block_size();
  const int64_t per_slot = (executor.max_model_len() + size - 1) / size;
  for (int64_t b = position / size; b < per_slot && slot * per_slot + b < executor.num_blocks(); ++b) {
    const int64_t row = std::max<int64_t>(position - b * size, 0);
    poison_block(executor, static_cast<int>(slot * per_slot + b), static_cast<int>(row));
  }
}

}  // namespace

void bind_blocks(py::module_& m) {
  py::class_<BlockPool>(m, "BlockPool", "Which blocks of a KV cache are free.")
      .def(py::init<int, int>(), py::arg("num_blocks"), py::arg("block_size"))
      .def(
          "reserve",
          [](BlockPool& self, int count) -> std::optional<std::vector<int32_t>> {
            check_between("count", count, 0, self.num_blocks());
            std::vector<int32_t> ids(count);
            if (!self.reserve(count, ids.data())) return std::nullopt;
            return ids;
          },
          py::arg("count"), "-> ids, or None if there are fewer.")
      .def(
          "release",
          [](BlockPool& self, const std::vector<int32_t>& ids) {
            check_between("the length of ids", static_cast<int64_t>(ids.size()), 0, self.num_blocks());
            self.release(ids.data(), static_cast<int>(ids.size()));
          },
          py::arg("ids"))
      .def(
          "blocks_for",
          [](const BlockPool& self, int64_t num_tokens) {
            check_between("num_tokens", num_tokens, 0, kMostTokens);
            return self.blocks_for(num_tokens);
          },
          py::arg("num_tokens"))
      .def_property_readonly("num_free", method(&BlockPool::num_free));
  m.def("poison", &poison, py::arg("executor"), py::arg("slot"), py::arg("position"),
        "NaN in the rows of a slot's own blocks, from a position on.");
  m.def("poison_block", &poison_block, py::arg("executor"), py::arg("block"), py::arg("row"),
        "NaN in a block's rows, from one on.");
  m.def(
      "copy_rows",
      [](LlamaExecutor& executor, int block, int id, int row, int count) {
        executor.copy_rows(block, id, row, count);
      },
      py::arg("executor"), py::arg("block"), py::arg("id"), py::arg("row"), py::arg("count"),
      "Rows of a block, from one on, into the block with an id.");
}

}  // namespace pearl
