// Loads, stores and atomics, and copies from global to shared memory that are waited for later.
#include <algorithm>
#include <type_traits>

#include "ptx/native/opcodes/lanes.h"

namespace ptx {

namespace {

// A lane's address: operands `at` and `at` + 1.
void global_addresses(const Warp& warp, const Instruction& in, int at, uint64_t* out) {
  const uint64_t* base = warp.in<uint64_t>(in[at]);
  const auto offset = static_cast<uint64_t>(static_cast<int64_t>(in[at + 1]));
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = base[lane] + offset;
}
void shared_addresses(const Warp& warp, const Instruction& in, int at, uint64_t* out) {
  const uint32_t* base = warp.in<uint32_t>(in[at]);
  const auto offset = static_cast<uint32_t>(in[at + 1]);
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = base[lane] + offset;
}

enum class Access { kRead, kWrite, kAtomic };

// Calls f(lane, place in memory, address, what is remembered of it, or null) for each lane of the mask, after
// all checks of a read; those of a write need the bytes.
template <bool is_shared, Access access, typename F>
void for_lanes(Machine& machine, Warp& warp, const uint64_t* addresses, uint32_t mask, uint32_t size, F f) {
  Shadows* shadows = &machine.shared().shadows();
  if constexpr (!is_shared) {
    shadows = machine.check_global(addresses, mask, size);
    machine.check_turn(warp, addresses, mask, size, access != Access::kRead);
  }
  if (access == Access::kAtomic) shadows = nullptr;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const uint64_t address = addresses[lane];
    try {
      auto* place = reinterpret_cast<std::byte*>(address);
      if constexpr (is_shared) {
        Shared& shared = machine.shared();
        place = access == Access::kRead ? shared.at(address, size) : shared.to_store(address, size);
      }
      if (access == Access::kRead && shadows != nullptr) shadows->read(address, size, warp.index);
      f(lane, place, address, shadows);
    } catch (Fault& fault) {
      fault.lane = lane;
      throw;
    }
  }
}

// n, n registers, an address. T as it lies in memory; L of a register, which may be wider.
template <typename T, typename L, bool is_shared>
void load(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  const int count = in[0];
  const auto size = static_cast<uint32_t>(sizeof(T)) * count;
  uint64_t addresses[kLanes];
  (is_shared ? shared_addresses : global_addresses)(warp, in, count + 1, addresses);
  L out[8][kLanes];
  for_lanes<is_shared, Access::kRead>(
      machine, warp, addresses, mask, size, [&](int lane, const std::byte* place, uint64_t, Shadows*) {
        T values[8];
        std::memcpy(values, place, size);
        using Signed = std::conditional_t<sizeof(T) == 1, int16_t, int64_t>;
        using Extended = std::conditional_t<std::is_signed_v<T>, Signed, T>;
        for (int i = 0; i < count; ++i) {
          out[i][lane] = static_cast<std::make_unsigned_t<Extended>>(static_cast<Extended>(values[i]));
        }
      });
  for (int i = 0; i < count; ++i) warp.put(in[1 + i], out[i], mask);
}

// An address, n, n registers.
template <typename T, typename L, bool is_shared>
void store(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  const int count = in[2];
  const auto size = static_cast<uint32_t>(sizeof(T)) * count;
  uint64_t addresses[kLanes];
  (is_shared ? shared_addresses : global_addresses)(warp, in, 0, addresses);
  const L* values[8];
  for (int i = 0; i < count; ++i) values[i] = warp.in<L>(in[3 + i]);
  const uint64_t clock = machine.tick();
  for_lanes<is_shared, Access::kWrite>(machine, warp, addresses, mask, size,
                                       [&](int lane, std::byte* place, uint64_t address, Shadows* shadows) {
                                         T bytes[8];
                                         for (int i = 0; i < count; ++i)
                                           bytes[i] = static_cast<T>(values[i][lane]);
                                         if (shadows != nullptr) {
                                           const auto* stored = reinterpret_cast<const std::byte*>(bytes);
                                           shadows->write(address, size, place, stored, warp.index, clock);
                                         }
                                         std::memcpy(place, bytes, size);
                                       });
}

// result, address, operand (and for cas the new value)
template <typename L, L (*f)(L, L), bool is_shared>
void atomic(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t addresses[kLanes];
  (is_shared ? shared_addresses : global_addresses)(warp, in, 1, addresses);
  const L* operand = warp.in<L>(in[3]);
  L out[kLanes] = {};
  for_lanes<is_shared, Access::kAtomic>(machine, warp, addresses, mask, sizeof(L),
                                        [&](int lane, std::byte* place, uint64_t, Shadows*) {
                                          std::memcpy(&out[lane], place, sizeof(L));
                                          const L stored = f(out[lane], operand[lane]);
                                          std::memcpy(place, &stored, sizeof(L));
                                        });
  warp.put(in[0], out, mask);
}

template <typename L>
void compare_and_swap(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t addresses[kLanes];
  global_addresses(warp, in, 1, addresses);
  const L *expected = warp.in<L>(in[3]), *wanted = warp.in<L>(in[4]);
  L out[kLanes] = {};
  for_lanes<false, Access::kAtomic>(machine, warp, addresses, mask, sizeof(L),
                                    [&](int lane, std::byte* place, uint64_t, Shadows*) {
                                      std::memcpy(&out[lane], place, sizeof(L));
                                      if (out[lane] == expected[lane])
                                        std::memcpy(place, &wanted[lane], sizeof(L));
                                    });
  warp.put(in[0], out, mask);
}

template <typename L>
struct Atomic {
  using S = std::make_signed_t<L>;
  static L add(L a, L b) { return a + b; }
  static L exchange(L, L b) { return b; }
  static L both(L a, L b) { return a & b; }
  static L either(L a, L b) { return a | b; }
  static L differ(L a, L b) { return a ^ b; }
  static L min(L a, L b) { return std::min(a, b); }
  static L max(L a, L b) { return std::max(a, b); }
  static L min_signed(L a, L b) { return static_cast<L>(std::min(static_cast<S>(a), static_cast<S>(b))); }
  static L max_signed(L a, L b) { return static_cast<L>(std::max(static_cast<S>(a), static_cast<S>(b))); }
};
uint32_t add_f32(uint32_t a, uint32_t b) { return bits_of(f32(a) + f32(b)); }

template <typename L>
void add_atomics(Opcodes* table, const std::string& bits, char letter) {
  using A = Atomic<L>;
  const std::string letters{static_cast<char>(letter - 'a' + 'A'), 'a', letter}, stem = "atom.global.";
  table->push_back({stem + "add.u" + bits, letters, atomic<L, A::add, false>});
  table->push_back({stem + "add.s" + bits, letters, atomic<L, A::add, false>});
  table->push_back({stem + "exch.b" + bits, letters, atomic<L, A::exchange, false>});
  table->push_back({stem + "and.b" + bits, letters, atomic<L, A::both, false>});
  table->push_back({stem + "or.b" + bits, letters, atomic<L, A::either, false>});
  table->push_back({stem + "xor.b" + bits, letters, atomic<L, A::differ, false>});
  table->push_back({stem + "min.u" + bits, letters, atomic<L, A::min, false>});
  table->push_back({stem + "max.u" + bits, letters, atomic<L, A::max, false>});
  table->push_back({stem + "min.s" + bits, letters, atomic<L, A::min_signed, false>});
  table->push_back({stem + "max.s" + bits, letters, atomic<L, A::max_signed, false>});
  table->push_back({stem + "cas.b" + bits, letters + letter, compare_and_swap<L>});
}

// Bytes of the target; a lane that gives fewer has zeros behind them.
void copy_async(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  uint64_t targets[kLanes], sources[kLanes];
  shared_addresses(warp, in, 0, targets);
  global_addresses(warp, in, 2, sources);
  const auto size = static_cast<uint32_t>(in[4]);
  const uint32_t* given = warp.in<uint32_t>(in[5]);
  uint32_t reads = 0;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    if (given[lane] > size) fail("copy_too_long", sources[lane], given[lane], lane);
    if (given[lane]) reads |= 1u << lane;
    try {
      std::byte* target = machine.shared().to_store(targets[lane], size);
      machine.shared().shadows().promise(targets[lane], size, warp.index);
      std::memset(target, 0xFF, size);  // poison, until it is delivered
    } catch (Fault& fault) {
      fault.lane = lane;
      throw;
    }
    warp.copies.push_back(
        {targets[lane], reinterpret_cast<const std::byte*>(sources[lane]), size, given[lane]});
  }
  if (reads) {
    machine.check_global(sources, reads, size);
    machine.check_turn(warp, sources, reads, size, false);
  }
}

void commit_copies(Machine&, Warp& warp, const Instruction&, uint32_t mask) {
  whole_warp(warp, mask);
  warp.copy_groups.push_back(std::move(warp.copies));
  warp.copies.clear();
}

void deliver_oldest(Machine& machine, Warp& warp) {
  for (const AsyncCopy& copy : warp.copy_groups.front()) {
    machine.shared().shadows().deliver(copy.target, copy.size, warp.index);
    std::byte* place = machine.shared().at(copy.target, copy.size);
    std::memset(place, 0, copy.size);
    if (copy.given) std::memcpy(place, copy.source, copy.given);
  }
  warp.copy_groups.pop_front();
}

void wait_for_copies(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  whole_warp(warp, mask);
  while (warp.copy_groups.size() > static_cast<size_t>(in[0])) deliver_oldest(machine, warp);
}

void wait_for_all_copies(Machine& machine, Warp& warp, const Instruction& in, uint32_t mask) {
  commit_copies(machine, warp, in, mask);
  while (!warp.copy_groups.empty()) deliver_oldest(machine, warp);
}

template <bool is_shared>
void add_space(Opcodes* table, const std::string& space) {
  const std::string load_from = "ld." + space, store_to = "st." + space;
  table->push_back({load_from + ".b8", "X+a", load<uint8_t, uint32_t, is_shared>});
  table->push_back({load_from + ".s8", "H+a", load<int8_t, uint32_t, is_shared>});
  table->push_back({load_from + ".b16", "X+a", load<uint16_t, uint32_t, is_shared>});
  table->push_back({load_from + ".b32", "W+a", load<uint32_t, uint32_t, is_shared>});
  table->push_back({load_from + ".b64", "Q+a", load<uint64_t, uint64_t, is_shared>});
  table->push_back({load_from + ".s32.b64", "Q+a", load<int32_t, uint64_t, is_shared>});
  table->push_back({load_from + ".u32.b64", "Q+a", load<uint32_t, uint64_t, is_shared>});
  table->push_back({store_to + ".b8", "ax+", store<uint8_t, uint32_t, is_shared>});
  table->push_back({store_to + ".b16", "ax+", store<uint16_t, uint32_t, is_shared>});
  table->push_back({store_to + ".b32", "aw+", store<uint32_t, uint32_t, is_shared>});
  table->push_back({store_to + ".b64", "aq+", store<uint64_t, uint64_t, is_shared>});
}

}  // namespace

void add_memory(Opcodes* table) {
  add_space<false>(table, "global");
  add_space<true>(table, "shared");
  add_atomics<uint32_t>(table, "32", 'w');
  add_atomics<uint64_t>(table, "64", 'q');
  table->push_back({"atom.global.add.f32", "Waw", atomic<uint32_t, add_f32, false>});
}

void add_copies(Opcodes* table) {
  table->push_back({"cp.async", "aaiw", copy_async});
  table->push_back({"cp.async.commit_group", "", commit_copies});
  table->push_back({"cp.async.wait_group", "i", wait_for_copies});
  table->push_back({"cp.async.wait_all", "", wait_for_all_copies});
}

}  // namespace ptx
