// Runs a kernel: program by program, in each the warps by turns in a random order that a seed decides.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "ptx/native/instruction.h"
#include "ptx/native/shared.h"
#include "ptx/native/warp.h"

namespace ptx {

// Memory that a kernel was given: first byte, one behind the last.
using Range = std::pair<uint64_t, uint64_t>;

struct Launch {
  std::array<uint32_t, 3> grid;
  std::vector<uint64_t> params;
  std::vector<Range> ranges;  // sorted, and none overlaps another
  uint32_t shared_bytes;
  bool global_races;                // whether races of warps are looked for in small tensors too
  bool dependent;                   // begun, as it may be, while the kernel ahead of it runs
  std::vector<uint8_t> unfinished;  // of each range: whether a kernel ahead stores into it
  uint64_t seed;
  uint64_t most_instructions;     // of one warp in one program
  std::function<void()> breathe;  // called now and then: it may throw
};

class Machine {
 public:
  Machine(const Kernel& kernel, const Launch& launch);

  // All programs. Throws Fault. Returns how many instructions the warps ran.
  uint64_t run();

  // For opcodes.
  Shared& shared() { return shared_; }
  uint32_t epoch() const { return epochs_.now; }
  const Launch& launch() const { return launch_; }
  // Checks bounds and alignment of all lanes. -> what is remembered of the memory: null where nothing is, as
  // it is large, or the lanes lie in several tensors. Throws Fault.
  Shadows* check_global(const uint64_t* addresses, uint32_t mask, uint32_t size);
  // Of an access inside its ranges: of a dependent kernel, lanes that have not waited for the kernel ahead
  // may read what it does not write. Notes what is stored. Throws Fault.
  void check_turn(const Warp& warp, const uint64_t* addresses, uint32_t mask, uint32_t size, bool is_store);
  const std::vector<uint8_t>& stored() const { return stored_; }  // of each range
  uint64_t tick() { return ++clock_; }
  uint64_t clock() const { return clock_; }
  const std::vector<uint64_t>& fences() const { return fences_; }
  void fence(Warp& warp);

 private:
  void start(const std::array<uint32_t, 3>& program);
  void run_program();
  void run_for(Warp& warp, uint64_t most);
  void step_apart(Warp& warp);
  void branch(Warp& warp, const Instruction& instruction, uint32_t mask);
  void end_lanes(Warp& warp, uint32_t mask);
  bool arrive(Warp& warp, uint32_t mask);
  void release();
  void check_touched(const Warp& warp, const Instruction& instruction) const;
  bool holds(uint64_t first, uint64_t last);
  size_t range_of(uint64_t address) const;

  const Kernel& kernel_;
  const Launch& launch_;
  Epochs epochs_;
  Shared shared_;
  std::vector<std::unique_ptr<Shadows>> global_;  // of each range, if it is small
  std::vector<uint32_t> constants_;
  std::vector<Warp> warps_;
  std::vector<uint64_t> fences_;
  std::mt19937_64 random_;
  std::array<uint32_t, 3> program_{};
  Warp* running_ = nullptr;
  std::vector<uint8_t> stored_;
  size_t last_range_ = 0;
  uint64_t clock_ = 0, count_ = 0, program_count_ = 0, breath_ = 0;
};

[[noreturn]] void fail(const char* kind, uint64_t address = 0, uint64_t size = 0, int lane = -1);

// The lanes of an instruction that a whole warp runs together. Throws Fault.
void whole_warp(const Warp& warp, uint32_t mask);

}  // namespace ptx
