#include "ptx/native/machine.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

namespace ptx {

namespace {

constexpr uint64_t kBreath = 1 << 20;  // instructions between two calls of Launch::breathe
constexpr uint32_t kLongestTurn = 256;
constexpr uint64_t kMostBytesTracked = 1 << 16;  // of a tensor: larger ones are weights, rows and pages

enum Special { kTid, kLaneId, kCtaId, kGrid = kCtaId + 3, kThreads = kGrid + 3, kWarpId };

void fill(uint32_t* slot, const Constant& constant, uint64_t value) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (constant.bytes == 8) {
      reinterpret_cast<uint64_t*>(slot)[lane] = value;
    } else {
      slot[lane] = static_cast<uint32_t>(value);
    }
  }
}

}  // namespace

void fail(const char* kind, uint64_t address, uint64_t size, int lane) {
  Fault fault;
  fault.kind = kind;
  fault.address = address;
  fault.size = size;
  fault.lane = lane;
  throw fault;
}

void whole_warp(const Warp& warp, uint32_t mask) {
  if (mask != kAllLanes) {
    Fault fault;
    fault.kind = "part_of_a_warp";
    fault.values = {mask, warp.live};
    throw fault;
  }
}

Machine::Machine(const Kernel& kernel, const Launch& launch)
    : kernel_(kernel),
      launch_(launch),
      shared_(epochs_, launch.shared_bytes, static_cast<uint32_t>(kernel.granule)),
      constants_(static_cast<size_t>(kernel.num_constant_slots) * kLanes),
      warps_(kernel.num_threads / kLanes),
      fences_(warps_.size()),
      random_(launch.seed),
      stored_(launch.ranges.size()) {
  for (const auto& [first, end] : launch.ranges) {
    const bool tracked = launch.global_races && end - first <= kMostBytesTracked;
    const auto granule = static_cast<uint32_t>(kernel.global_granule);
    global_.push_back(tracked ? std::make_unique<Shadows>(epochs_, first, end - first, granule) : nullptr);
  }
  for (const Constant& constant : kernel.constants) {
    fill(constants_.data() + constant.slot * kLanes, constant, constant.value);
  }
  for (size_t i = 0; i < kernel.params.size(); ++i) {
    fill(constants_.data() + kernel.params[i].slot * kLanes, kernel.params[i], launch.params[i]);
  }
  for (size_t i = 0; i < warps_.size(); ++i) {
    Warp& warp = warps_[i];
    warp.index = static_cast<int>(i);
    warp.registers.assign(static_cast<size_t>(kernel.num_slots) * kLanes, 0xFFFFFFFF);
    warp.constants = constants_.data();
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      const auto set = [&](Special special, uint32_t value) {
        const int32_t slot = kernel.specials[special];
        if (slot >= 0) warp.own(slot)[lane] = value;
      };
      set(kTid, static_cast<uint32_t>(i) * kLanes + lane);
      set(kLaneId, lane);
      set(kThreads, static_cast<uint32_t>(kernel.num_threads));
      set(kWarpId, static_cast<uint32_t>(i));
    }
  }
}

uint64_t Machine::run() {
  const auto [x, y, z] = launch_.grid;
  std::vector<uint32_t> order(static_cast<size_t>(x) * y * z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  try {
    for (const uint32_t at : order) {
      start({at % x, at / x % y, at / x / y});
      run_program();
    }
  } catch (Fault& fault) {
    fault.program = program_;
    if (running_ != nullptr) {
      fault.warp = running_->index;
      if (fault.pc < 0) fault.pc = running_->pc;
    }
    throw;
  }
  return count_;
}

void Machine::start(const std::array<uint32_t, 3>& program) {
  program_ = program;
  program_count_ = 0;
  for (Warp& warp : warps_) {  // what the program before it did not wait for
    warp.copy_groups.push_back(std::move(warp.copies));
    for (const auto& group : warp.copy_groups) {
      for (const AsyncCopy& copy : group) shared_.shadows().forget(copy.target, copy.size);
    }
  }
  shared_.start_program();
  epochs_.first = ++epochs_.now;
  std::fill(fences_.begin(), fences_.end(), 0);
  for (Warp& warp : warps_) {
    warp.pc = 0;
    warp.active = warp.live = kAllLanes;
    warp.apart.clear();
    warp.parked = {-1, 0};
    warp.waits = false;
    warp.awaited = 0;
    warp.predicates.assign(kernel_.num_predicates, 0);
    warp.predicates[1] = kAllLanes;
    warp.copies.clear();
    warp.copy_groups.clear();
    warp.wgmmas = {};
    warp.wgmma_groups.clear();
    warp.multiplies = false;
    warp.fenced = warp.fence_epoch = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const int32_t place = kernel_.specials[kCtaId + axis], size = kernel_.specials[kGrid + axis];
      if (place >= 0) std::fill_n(warp.own(place), kLanes, program[axis]);
      if (size >= 0) std::fill_n(warp.own(size), kLanes, launch_.grid[axis]);
    }
  }
}

void Machine::run_program() {
  std::vector<Warp*> ready;
  for (;;) {
    ready.clear();
    bool anybody_waits = false;
    for (Warp& warp : warps_) {
      if (warp.waits) anybody_waits = true;
      if (warp.live && !warp.waits) ready.push_back(&warp);
    }
    if (ready.empty()) {
      running_ = nullptr;
      if (!anybody_waits) return;
      release();
      continue;
    }
    const uint64_t draw = random_();
    running_ = ready[draw % ready.size()];
    // Half of the turns last until the next barrier, the others are short.
    const bool is_short = ready.size() > 1 && (draw >> 32 & 1);
    run_for(*running_, is_short ? 1 + (draw >> 33) % kLongestTurn : UINT64_MAX);
  }
}

// All warps that have not ended wait: at one barrier, and none has ended without it.
void Machine::release() {
  const Warp* first = nullptr;
  uint32_t ended = 0, elsewhere = 0;
  for (const Warp& warp : warps_) {
    if (!warp.live) {
      ended |= 1u << warp.index;
    } else if (first == nullptr) {
      first = &warp;
    } else if (warp.pc != first->pc) {
      elsewhere |= 1u << warp.index;
    }
  }
  if (ended || elsewhere) {
    Fault fault;
    fault.kind = ended ? "barrier_not_reached" : "barriers_differ";
    fault.others = ended ? ended : elsewhere;
    fault.warp = first->index;
    fault.pc = first->pc;
    if (elsewhere) fault.values = {static_cast<uint64_t>(warps_[std::countr_zero(elsewhere)].pc)};
    throw fault;
  }
  for (Warp& warp : warps_) {
    warp.waits = false;
    ++warp.pc;
  }
  ++epochs_.now;
}

// The lanes with the smallest pc go first; they meet those that wait there.
void Machine::step_apart(Warp& warp) {
  for (;;) {
    auto smallest = std::min_element(warp.apart.begin(), warp.apart.end(),
                                     [](const LaneGroup& a, const LaneGroup& b) { return a.pc < b.pc; });
    if (smallest == warp.apart.end()) return;
    if (warp.active == 0) {
      warp.pc = smallest->pc;
      warp.active = smallest->lanes;
    } else if (smallest->pc == warp.pc) {
      warp.active |= smallest->lanes;
    } else if (smallest->pc < warp.pc) {
      std::swap(smallest->pc, warp.pc);
      std::swap(smallest->lanes, warp.active);
      continue;
    } else {
      return;
    }
    warp.apart.erase(smallest);
  }
}

void Machine::branch(Warp& warp, const Instruction& instruction, uint32_t mask) {
  if (mask == warp.active) {
    warp.pc = instruction.target;
    return;
  }
  ++warp.pc;
  if (mask == 0) return;
  warp.apart.push_back({instruction.target, mask});
  warp.active &= ~mask;
}

// A kernel that ends before the one ahead of it tells the next one that both have ended.
void Machine::end_lanes(Warp& warp, uint32_t mask) {
  if (launch_.dependent && (mask & ~warp.awaited)) fail("ended_unawaited");
  warp.live &= ~mask;
  warp.active &= ~mask;
  ++warp.pc;
}

// Whether the whole warp is there. Lanes that come early are parked: others of the warp may come, or fail
// first.
bool Machine::arrive(Warp& warp, uint32_t mask) {
  if (warp.parked.pc == warp.pc) mask |= std::exchange(warp.parked, {-1, 0}).lanes;
  if (mask == kAllLanes) {
    warp.active = mask;
    warp.waits = true;
    return true;
  }
  if (mask != warp.active || warp.parked.lanes || warp.apart.empty()) {
    Fault fault;
    fault.kind = "barrier_by_a_part";
    fault.values = {mask};
    throw fault;
  }
  warp.parked = {warp.pc, mask};
  warp.active = 0;
  return false;
}

void Machine::run_for(Warp& warp, uint64_t most) {
  const Instruction* const code = kernel_.code.data();
  for (; most > 0 && warp.live; --most) {
    if (!warp.apart.empty()) step_apart(warp);
    if (warp.active == 0) {  // the others have ended
      warp.pc = warp.parked.pc;
      arrive(warp, 0);
    }
    const Instruction& instruction = code[warp.pc];
    uint32_t mask = warp.active;
    if (instruction.guard >= 0) {
      const uint32_t guard = warp.predicates[instruction.guard];
      mask &= instruction.negated ? ~guard : guard;
    }
    ++count_;
    if (++breath_ >= kBreath) {
      breath_ = 0;
      launch_.breathe();
    }
    if (++program_count_ > launch_.most_instructions) fail("too_long");
    if (warp.multiplies && mask) check_touched(warp, instruction);
    switch (instruction.kind) {
      case Kind::kPlain:
        if (mask) instruction.run(*this, warp, instruction, mask);
        ++warp.pc;
        break;
      case Kind::kBranch:
        branch(warp, instruction, mask);
        break;
      case Kind::kExit:
        end_lanes(warp, mask);
        break;
      case Kind::kBarrier:
        if (mask == 0) {
          ++warp.pc;
        } else if (arrive(warp, mask)) {
          return;
        }
        break;
    }
  }
}

void Machine::check_touched(const Warp& warp, const Instruction& instruction) const {
  const auto has = [](const std::vector<int32_t>& slots, int32_t slot) {
    return std::find(slots.begin(), slots.end(), slot) != slots.end();
  };
  const auto check = [&](const WgmmaGroup& group) {
    for (int32_t i = 0; i < instruction.num_touched; ++i) {
      const int32_t slot = instruction.touched[i] / 2;
      const bool is_written = instruction.touched[i] & 1;
      if (has(group.written, slot) || (is_written && has(group.read, slot))) fail("register_in_flight");
    }
  };
  check(warp.wgmmas);
  for (const WgmmaGroup& group : warp.wgmma_groups) check(group);
}

void Machine::fence(Warp& warp) {
  fences_[warp.index] = clock_;
  warp.fence_epoch = epochs_.now;
}

bool Machine::holds(uint64_t first, uint64_t last) {
  const auto& ranges = launch_.ranges;
  if (last_range_ < ranges.size() && first >= ranges[last_range_].first &&
      last <= ranges[last_range_].second) {
    return true;
  }
  const auto behind = std::upper_bound(ranges.begin(), ranges.end(), Range{first, UINT64_MAX});
  if (behind == ranges.begin() || last > std::prev(behind)->second) return false;
  last_range_ = static_cast<size_t>(std::prev(behind) - ranges.begin());
  return true;
}

size_t Machine::range_of(uint64_t address) const {
  const auto& ranges = launch_.ranges;
  const auto behind = std::upper_bound(ranges.begin(), ranges.end(), Range{address, UINT64_MAX});
  return static_cast<size_t>(behind - ranges.begin()) - 1;
}

void Machine::check_turn(const Warp& warp, const uint64_t* addresses, uint32_t mask, uint32_t size,
                         bool is_store) {
  const uint32_t early = launch_.dependent ? mask & ~warp.awaited : 0;
  for (uint32_t left = is_store ? mask : early; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const size_t range = range_of(addresses[lane]);
    if ((early >> lane & 1) && (is_store || launch_.unfinished[range])) {
      fail(is_store ? "stored_unawaited" : "read_unawaited", addresses[lane], size, lane);
    }
    if (is_store) stored_[range] = 1;
  }
}

Shadows* Machine::check_global(const uint64_t* addresses, uint32_t mask, uint32_t size) {
  uint64_t low = UINT64_MAX, high = 0, bits = 0;
  for (uint32_t left = mask; left; left &= left - 1) {
    const uint64_t address = addresses[std::countr_zero(left)];
    low = std::min(low, address);
    high = std::max(high, address);
    bits |= address;
  }
  if (!(bits & (size - 1)) && high <= UINT64_MAX - size && holds(low, high + size)) {
    return global_[last_range_].get();
  }
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const uint64_t address = addresses[lane];
    if (address > UINT64_MAX - size || !holds(address, address + size)) fail("bounds", address, size, lane);
    if (address & (size - 1)) fail("misaligned", address, size, lane);
  }
  return nullptr;
}

}  // namespace ptx
