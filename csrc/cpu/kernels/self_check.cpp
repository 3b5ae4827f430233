#include "cpu/kernels/self_check.h"

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "core/failure.h"
#include "core/thread.h"

namespace pearl {
namespace {

// Rows of half a tile, a tile, and more than one; one block, all of a panel, and one more.
constexpr std::array<int, 4> kRows = {1, kTileRows, kTileRows + 1, 3 * kTileRows};
constexpr std::array<int, 3> kBlocks = {1, kPanel, kPanel + 1};
constexpr int kMostRows = 3 * kTileRows, kMostBlocks = kPanel + 1, kDepth = 3 * kDepthAlign;

// bf16 of the integers -8 to 8.
uint16_t element(uint32_t index) {
  const auto value = static_cast<float>(static_cast<int>(index * 2654435761u >> 8) % 17 - 8);
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, value) >> 16);
}

struct Operands {
  alignas(64) uint16_t x[kMostRows][kDepth];
  alignas(64) uint16_t w[kMostBlocks][kDepth * kLanes];
  alignas(64) float found[kMostRows][kMostBlocks * kLanes];
  alignas(64) float expected[kMostRows][kMostBlocks * kLanes];
};

void multiply(const Kernels& kernels, const Operands& operands, int rows, int blocks, float* out) {
  MatmulArgs args{};
  args.x = operands.x;
  args.x_stride = args.k = kDepth;
  args.rows = rows;
  args.w = operands.w;
  args.w_stride = kDepth * kLanes;
  args.num_blocks = blocks;
  args.num_cols = blocks * kLanes;
  args.epilogue = Epilogue::kStore;
  args.out = out;
  args.out_stride = kMostBlocks * kLanes;
  kernels.matmul(args);
}

// The same for a matrix of codes: any bytes are codes, scales are 1/16 to 16, offsets and sums any numbers.
struct CodeOperands {
  static constexpr int kCodeDepth = 3 * kRecordDepth;
  static constexpr GroupedRow kRow{kCodeDepth, 32};
  static constexpr int64_t kMostRecordBytes = 1024 + 4 * 32;

  alignas(64) char x[kMostRows][kCodeDepth + 12 * kCodeDepth / 32 + 56];  // whole lines
  alignas(64) char w[kMostBlocks][kCodeDepth / kRecordDepth * kMostRecordBytes];

  CodeOperands() {
    uint32_t index = 0;
    const auto next = [&index] { return ++index * 2654435761u >> 8; };
    for (auto& row : x) {
      for (char& code : row) code = static_cast<char>(next());
      for (int g = 0; g < kRow.num_groups(); ++g) {
        const_cast<float*>(kRow.scales(row))[g] = static_cast<float>(next() % 17 + 1) / 64.0f;
        const_cast<int32_t*>(kRow.offsets(row))[g] = static_cast<int32_t>(next() % 4096) - 2048;
        const_cast<float*>(kRow.sums(row))[g] = static_cast<float>(static_cast<int>(next() % 17) - 8);
      }
    }
    for (auto& block : w) {  // each two bytes a half too: a sign and an exponent of 11 to 19
      for (size_t i = 0; i < sizeof block; i += 2) {
        const uint32_t bits = next();
        const auto half =
            static_cast<uint16_t>((bits & 0x8000) | (11 + bits % 9) << 10 | (bits >> 3 & 0x3FF));
        __builtin_memcpy(block + i, &half, sizeof half);
      }
    }
  }
};

constexpr std::array<GroupForm, 3> kForms = {{{8, 32, false}, {8, 32, true}, {4, 32, true}}};

void multiply(const Kernels& kernels, const CodeOperands& operands, const GroupForm& form, int rows,
              int blocks, float* out) {
  GroupedMatmulArgs args{form, operands.x[0], sizeof operands.x[0], operands.w[0], {}};
  args.out.rows = rows;
  args.out.k = CodeOperands::kCodeDepth;
  args.out.num_blocks = blocks;
  args.out.num_cols = blocks * kLanes;
  args.out.epilogue = Epilogue::kStore;
  args.out.out = out;
  args.out.out_stride = kMostBlocks * kLanes;
  kernels.grouped_matmul(args);
}

struct Difference {
  int rows, row, column;
  float found, expected;
};

std::optional<Difference> first_difference(const Operands& operands, int rows, int blocks) {
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < blocks * kLanes; ++column) {
      const float found = operands.found[row][column], expected = operands.expected[row][column];
      if (found != expected) return Difference{rows, row, column, found, expected};
    }
  }
  return std::nullopt;
}

std::optional<Difference> first_difference(const Kernels& tested, const Kernels& sure) {
  const auto operands = std::make_unique<Operands>();
  uint32_t index = 0;
  for (auto& row : operands->x) {
    for (uint16_t& each : row) each = element(++index);
  }
  for (auto& block : operands->w) {
    for (uint16_t& each : block) each = element(++index);
  }
  for (const Kernels* kernels : {&tested, &sure}) {
    if (kernels->prepare_thread != nullptr) kernels->prepare_thread();
  }
  const auto codes = std::make_unique<CodeOperands>();
  for (const int rows : kRows) {
    for (const int blocks : kBlocks) {
      multiply(tested, *operands, rows, blocks, operands->found[0]);
      multiply(sure, *operands, rows, blocks, operands->expected[0]);
      if (const auto found = first_difference(*operands, rows, blocks)) return found;
      for (const GroupForm& form : kForms) {
        multiply(tested, *codes, form, rows, blocks, operands->found[0]);
        multiply(sure, *codes, form, rows, blocks, operands->expected[0]);
        if (const auto found = first_difference(*operands, rows, blocks)) return found;
      }
    }
  }
  return std::nullopt;
}

}  // namespace

const Kernels& checked_kernels(const Kernels& tested, const Kernels& sure) {
  std::optional<Difference> found;
  // On a thread of its own, with which the setting of the tiles ends.
  started_thread("the check of instruction set '" + std::string(tested.isa) + "'", [&] {
    found = first_difference(tested, sure);
  }).join();
  if (!found) return tested;
  throw Failure(FailureKind::kResource,
                "instruction set '" + std::string(tested.isa) + "' computes wrong sums on this machine: " +
                    std::to_string(found->found) + " where '" + sure.isa + "' has " +
                    std::to_string(found->expected) + " (row " + std::to_string(found->row) + ", column " +
                    std::to_string(found->column) + " of a product of " + std::to_string(found->rows) +
                    " rows): pass isa='" + sure.isa + "', or set PEARL_ISA=" + sure.isa);
}

}  // namespace pearl
