// A kernel as the executor reads it: instructions with a function each, operands as slots, constants as bits.
// Knows nothing of PTX's text, which tests/ptx/decode.py reads.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr int kSlotBytes = kLanes * 4;  // a register of 32 bits; one of 64 bits takes two slots
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

class Machine;
struct Warp;
struct Instruction;

// Runs one instruction for the lanes of the mask, which is never empty.
using Run = void (*)(Machine&, Warp&, const Instruction&, uint32_t mask);

enum class Kind : uint8_t { kPlain, kBranch, kExit, kBarrier };

// An opcode as decode.py looks it up. A letter of `operands` says how the next operand is given:
//   h w q   a value of 16, 32 or 64 bits a lane: the slot of a register, or ~slot of a constant
//   x       one of 16 or of 32 bits
//   p       a predicate, by index
//   a       an address: the slot of its 64 bits (32 in shared memory), then an offset
//   i       an integer as it is written
//   +       (behind a letter) a list in braces: its length, then the operands
// A capital letter is written, a small one is read.
struct Opcode {
  std::string name;
  std::string operands;
  Run run = nullptr;
  Kind kind = Kind::kPlain;
};

struct Instruction {
  Run run;
  const int32_t* operands;
  int32_t guard;  // a predicate; -1: always
  bool negated;
  Kind kind;
  int32_t target;          // of a branch
  const int32_t* touched;  // registers: slot * 2, and 1 more where it is written
  int32_t num_touched;     // 0 in a kernel without wgmma

  int32_t operator[](int index) const { return operands[index]; }
};

// A slot of the constants, and the value that all lanes read there.
struct Constant {
  int32_t slot;
  int32_t bytes;  // 4 or 8
  uint64_t value;
};

struct Kernel {
  std::vector<Instruction> code;
  std::vector<int32_t> operands, touched;
  std::vector<Constant> constants;
  std::vector<Constant> params;  // in order; each value is a launch's
  std::array<int32_t, 10>
      specials;  // slots: tid.x, laneid, ctaid.x y z, nctaid.x y z, ntid.x, warpid; -1: unused
  int32_t num_slots = 0, num_constant_slots = 0, num_predicates = 2;  // predicates 0 and 1: never, always
  int32_t num_threads = 0;
  int32_t granule = 16;         // bytes of the smallest access to shared memory
  int32_t global_granule = 16;  // likewise
};

// What a check found. decode.py knows the line, and driver.py the tensors.
struct Fault {
  std::string kind;  // as tests/ptx/faults.py spells it
  int32_t pc = -1;
  int32_t warp = -1;
  int32_t lane = -1;
  uint64_t address = 0;
  uint64_t size = 0;
  uint32_t others = 0;  // warps, as a mask
  std::array<uint64_t, 4> values{};
  std::array<uint32_t, 3> program{};
};

}  // namespace ptx
