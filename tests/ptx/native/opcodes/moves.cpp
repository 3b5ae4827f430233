// What moves bits between registers and lanes, and what ends a program or makes it wait.
#include <algorithm>

#include "ptx/native/opcodes/lanes.h"

namespace ptx {

namespace {

template <typename L>
void move(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  warp.put(in[0], warp.in<L>(in[1]), mask);
}

// n, then n registers, then the register whose n pieces they become.
template <typename Whole, typename Part>
void split(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const int count = in[0];
  const Whole* whole = warp.in<Whole>(in[count + 1]);
  Part out[4][kLanes];
  const int bits = static_cast<int>(8 * sizeof(Whole)) / count;
  for (int piece = 0; piece < count; ++piece) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t part = static_cast<uint64_t>(whole[lane]) >> (piece * bits);
      out[piece][lane] = static_cast<Part>(bits == 16 ? part & 0xFFFF : part);
    }
  }
  for (int piece = 0; piece < count; ++piece) warp.put(in[1 + piece], out[piece], mask);
}

template <typename Whole, typename Part>
void join(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const int count = in[1];
  const int bits = static_cast<int>(8 * sizeof(Whole)) / count;
  Whole out[kLanes] = {};
  for (int piece = 0; piece < count; ++piece) {
    const Part* part = warp.in<Part>(in[2 + piece]);
    for (int lane = 0; lane < kLanes; ++lane) out[lane] |= static_cast<Whole>(part[lane]) << (piece * bits);
  }
  warp.put(in[0], out, mask);
}

// All lanes that the member mask names have come, and no other.
void check_members(const Warp& warp, const Instruction& in, int operand, uint32_t mask) {
  const uint32_t members = warp.in<uint32_t>(in[operand])[std::countr_zero(mask)];
  if (members != mask) {
    Fault fault;
    fault.kind = "members_absent";
    fault.values = {members, mask};
    throw fault;
  }
}

enum class Shuffle { kUp, kDown, kButterfly, kIndex };

// result, whether the source is in range, value, by, clamp and segments, members
template <Shuffle shuffle>
void shuffled(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  check_members(warp, in, 5, mask);
  const uint32_t *a = warp.in<uint32_t>(in[2]), *by = warp.in<uint32_t>(in[3]), *c = warp.in<uint32_t>(in[4]);
  uint32_t out[kLanes], in_range = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int segment = static_cast<int>(c[lane] >> 8 & 31), clamp = static_cast<int>(c[lane] & 31);
    const int first = lane & segment, last = first | (clamp & ~segment),
              step = static_cast<int>(by[lane] & 31);
    int source = lane;
    bool fits = false;
    switch (shuffle) {
      case Shuffle::kUp:
        source = lane - step;
        fits = source >= last;
        break;
      case Shuffle::kDown:
        source = lane + step;
        fits = source <= last;
        break;
      case Shuffle::kButterfly:
        source = lane ^ step;
        fits = source <= last;
        break;
      case Shuffle::kIndex:
        source = first | (step & ~segment);
        fits = source <= last;
        break;
    }
    if (!fits) source = lane;
    if ((mask >> lane & 1) && !(mask >> source & 1)) fail("lane_absent", 0, 0, lane);
    out[lane] = a[source];
    in_range |= static_cast<uint32_t>(fits) << lane;
  }
  warp.put(in[0], out, mask);
  warp.put_predicate(in[1], in_range, mask);
}

enum class Reduction { kAdd, kMin, kMax, kAnd, kOr, kXor };

template <typename T, Reduction reduction>
void reduced(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  check_members(warp, in, 2, mask);
  const uint32_t* a = warp.in<uint32_t>(in[1]);
  uint32_t left = mask & (mask - 1);
  uint32_t total = a[std::countr_zero(mask)];
  for (; left; left &= left - 1) {
    const uint32_t value = a[std::countr_zero(left)];
    const T x = static_cast<T>(total), y = static_cast<T>(value);
    switch (reduction) {
      case Reduction::kAdd:
        total += value;
        break;
      case Reduction::kMin:
        total = static_cast<uint32_t>(std::min(x, y));
        break;
      case Reduction::kMax:
        total = static_cast<uint32_t>(std::max(x, y));
        break;
      case Reduction::kAnd:
        total &= value;
        break;
      case Reduction::kOr:
        total |= value;
        break;
      case Reduction::kXor:
        total ^= value;
        break;
    }
  }
  uint32_t out[kLanes];
  std::fill_n(out, kLanes, total);
  warp.put(in[0], out, mask);
}

void ballot(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  check_members(warp, in, 2, mask);
  uint32_t out[kLanes];
  std::fill_n(out, kLanes, warp.predicates[in[1]] & mask);
  warp.put(in[0], out, mask);
}

template <bool all>
void vote(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  check_members(warp, in, 2, mask);
  const uint32_t held = warp.predicates[in[1]] & mask;
  warp.put_predicate(in[0], (all ? held == mask : held != 0) ? kAllLanes : 0, mask);
}

void active_mask(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  uint32_t out[kLanes];
  std::fill_n(out, kLanes, mask);
  warp.put(in[0], out, mask);
}

void await_kernel_ahead(Machine&, Warp& warp, const Instruction&, uint32_t mask) { warp.awaited |= mask; }

void nothing(Machine&, Warp&, const Instruction&, uint32_t) {}

void fence_proxy(Machine& machine, Warp& warp, const Instruction&, uint32_t) { machine.fence(warp); }

void trap(Machine&, Warp&, const Instruction&, uint32_t mask) { fail("trap", 0, 0, std::countr_zero(mask)); }

// The addresses of message and file, the line, the address of the function's name.
void assertion(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const int lane = std::countr_zero(mask);
  Fault fault;
  fault.kind = "assertion";
  fault.lane = lane;
  fault.values = {warp.in<uint64_t>(in[0])[lane], warp.in<uint64_t>(in[1])[lane],
                  warp.in<uint32_t>(in[2])[lane], warp.in<uint64_t>(in[3])[lane]};
  throw fault;
}

template <typename T>
void add_reductions(Opcodes* table, const std::string& type) {
  table->push_back({"redux.add." + type, "Www", reduced<T, Reduction::kAdd>});
  table->push_back({"redux.min." + type, "Www", reduced<T, Reduction::kMin>});
  table->push_back({"redux.max." + type, "Www", reduced<T, Reduction::kMax>});
}

}  // namespace

void add_moves(Opcodes* table) {
  for (const char* type : {"b16", "u16", "s16", "f16", "bf16"}) {
    table->push_back({std::string("mov.") + type, "Hh", move<uint32_t>});
  }
  for (const char* type : {"b32", "u32", "s32", "f32"}) {
    table->push_back({std::string("mov.") + type, "Ww", move<uint32_t>});
  }
  for (const char* type : {"b64", "u64", "s64", "f64"}) {
    table->push_back({std::string("mov.") + type, "Qq", move<uint64_t>});
  }
  table->push_back({"cvta.global.u64", "Qq", move<uint64_t>});
  table->push_back({"cvta.to.global.u64", "Qq", move<uint64_t>});
  table->push_back({"split.b32", "H+w", split<uint32_t, uint32_t>});
  table->push_back({"split.b64", "X+q", split<uint64_t, uint32_t>});
  table->push_back({"join.b32", "Wh+", join<uint32_t, uint32_t>});
  table->push_back({"join.b64", "Qx+", join<uint64_t, uint32_t>});
  table->push_back({"shfl.up.b32", "WPwwww", shuffled<Shuffle::kUp>});
  table->push_back({"shfl.down.b32", "WPwwww", shuffled<Shuffle::kDown>});
  table->push_back({"shfl.bfly.b32", "WPwwww", shuffled<Shuffle::kButterfly>});
  table->push_back({"shfl.idx.b32", "WPwwww", shuffled<Shuffle::kIndex>});
  add_reductions<int32_t>(table, "s32");
  add_reductions<uint32_t>(table, "u32");
  table->push_back({"redux.and.b32", "Www", reduced<uint32_t, Reduction::kAnd>});
  table->push_back({"redux.or.b32", "Www", reduced<uint32_t, Reduction::kOr>});
  table->push_back({"redux.xor.b32", "Www", reduced<uint32_t, Reduction::kXor>});
  table->push_back({"vote.ballot.b32", "Wpw", ballot});
  table->push_back({"vote.all.pred", "Ppw", vote<true>});
  table->push_back({"vote.any.pred", "Ppw", vote<false>});
  table->push_back({"activemask.b32", "W", active_mask});
  table->push_back({"call.__assertfail", "qqwq", assertion});
  table->push_back({"trap", "", trap});
  table->push_back({"fence.proxy.async", "", fence_proxy});
  table->push_back({"griddepcontrol.wait", "", await_kernel_ahead});
  // One program runs at a time, and its warps see each store when it is made: nothing is left to order. Nor
  // is a kernel started before the one ahead of it has ended, whatever that allows.
  for (const char* name :
       {"fence", "membar", "bar.warp", "wgmma.fence", "griddepcontrol.launch_dependents"}) {
    table->push_back({name, "", nothing});
  }
  table->push_back({"bra", "", nullptr, Kind::kBranch});
  table->push_back({"ret", "", nullptr, Kind::kExit});
  table->push_back({"exit", "", nullptr, Kind::kExit});
  table->push_back({"bar", "", nullptr, Kind::kBarrier});
}

}  // namespace ptx
