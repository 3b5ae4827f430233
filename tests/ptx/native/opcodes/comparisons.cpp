// Comparisons, and what is done with predicates.
#include <type_traits>

#include "ptx/native/opcodes/lanes.h"

namespace ptx {

namespace {

enum class Order { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual };

template <Order order, typename T>
bool holds(T a, T b) {
  switch (order) {
    case Order::kEqual:
      return a == b;
    case Order::kNotEqual:
      return a != b;
    case Order::kLess:
      return a < b;
    case Order::kLessEqual:
      return a <= b;
    case Order::kGreater:
      return a > b;
    case Order::kGreaterEqual:
      return a >= b;
  }
}

template <typename T, Order order, typename L>
bool whole(L a, L b) {
  return holds<order>(static_cast<T>(a), static_cast<T>(b));
}

// Of numbers; with NaN, ordered comparisons do not hold and unordered ones do.
template <auto from, Order order, bool unordered, typename L>
bool real(L a, L b) {
  const auto x = from(a), y = from(b);
  const bool has_nan = x != x || y != y;
  return has_nan ? unordered : holds<order>(x, y);
}
template <auto from, bool nan, typename L>
bool is_nan(L a, L b) {
  return (from(a) != from(a) || from(b) != from(b)) == nan;
}

template <auto f>
struct ComparePairs;
template <bool (*f)(uint32_t, uint32_t)>
struct ComparePairs<f> {
  static void run(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
    const uint32_t *a = warp.in<uint32_t>(in[2]), *b = warp.in<uint32_t>(in[3]);
    uint32_t low = 0, high = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      low |= static_cast<uint32_t>(f(a[lane] & 0xFFFF, b[lane] & 0xFFFF)) << lane;
      high |= static_cast<uint32_t>(f(a[lane] >> 16, b[lane] >> 16)) << lane;
    }
    warp.put_predicate(in[0], low, mask);
    warp.put_predicate(in[1], high, mask);
  }
};

template <typename T, Order order>
void add_whole(Opcodes* table, const char* name, const std::string& type, char letter) {
  using L = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  table->push_back(
      {"setp." + (name + ("." + type)), std::string{'P', letter, letter}, Compare<whole<T, order, L>>::run});
}

template <auto from, typename L, Order order>
void add_real(Opcodes* table, const char* name, const std::string& type, char letter) {
  const std::string letters{'P', letter, letter}, stem = std::string("setp.") + name;
  table->push_back({stem + "." + type, letters, Compare<real<from, order, false, L>>::run});
  table->push_back({stem + "u." + type, letters, Compare<real<from, order, true, L>>::run});
  if constexpr (std::is_same_v<L, uint32_t>) {
    if (letter != 'h') return;
    table->push_back({stem + "." + type + "x2", "PPww", ComparePairs<real<from, order, false, L>>::run});
    table->push_back({stem + "u." + type + "x2", "PPww", ComparePairs<real<from, order, true, L>>::run});
  }
}

template <Order order>
void add_order(Opcodes* table, const char* name) {
  add_whole<int16_t, order>(table, name, "s16", 'h');
  add_whole<uint16_t, order>(table, name, "u16", 'h');
  add_whole<int32_t, order>(table, name, "s32", 'w');
  add_whole<uint32_t, order>(table, name, "u32", 'w');
  add_whole<int64_t, order>(table, name, "s64", 'q');
  add_whole<uint64_t, order>(table, name, "u64", 'q');
  if (order == Order::kEqual || order == Order::kNotEqual) {
    add_whole<uint16_t, order>(table, name, "b16", 'h');
    add_whole<uint32_t, order>(table, name, "b32", 'w');
    add_whole<uint64_t, order>(table, name, "b64", 'q');
  }
  add_real<f32, uint32_t, order>(table, name, "f32", 'w');
  add_real<f64, uint64_t, order>(table, name, "f64", 'q');
  add_real<f16, uint32_t, order>(table, name, "f16", 'h');
  add_real<bf16, uint32_t, order>(table, name, "bf16", 'h');
}

enum class Logic { kAnd, kOr, kXor };
template <Logic logic>
void combine(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const uint32_t a = warp.predicates[in[1]], b = warp.predicates[in[2]];
  warp.put_predicate(in[0], logic == Logic::kAnd ? a & b : logic == Logic::kOr ? a | b : a ^ b, mask);
}

void invert(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  warp.put_predicate(in[0], ~warp.predicates[in[1]], mask);
}

void move(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  warp.put_predicate(in[0], warp.predicates[in[1]], mask);
}

template <typename L>
void select(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const L *a = warp.in<L>(in[1]), *b = warp.in<L>(in[2]);
  const uint32_t chosen = warp.predicates[in[3]];
  L out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = chosen >> lane & 1 ? a[lane] : b[lane];
  warp.put(in[0], out, mask);
}

}  // namespace

void add_comparisons(Opcodes* table) {
  add_order<Order::kEqual>(table, "eq");
  add_order<Order::kNotEqual>(table, "ne");
  add_order<Order::kLess>(table, "lt");
  add_order<Order::kLessEqual>(table, "le");
  add_order<Order::kGreater>(table, "gt");
  add_order<Order::kGreaterEqual>(table, "ge");
  table->push_back({"setp.num.f32", "Pww", Compare<is_nan<f32, false, uint32_t>>::run});
  table->push_back({"setp.nan.f32", "Pww", Compare<is_nan<f32, true, uint32_t>>::run});
  table->push_back({"setp.num.f64", "Pqq", Compare<is_nan<f64, false, uint64_t>>::run});
  table->push_back({"setp.nan.f64", "Pqq", Compare<is_nan<f64, true, uint64_t>>::run});
  table->push_back({"setp.num.f16", "Phh", Compare<is_nan<f16, false, uint32_t>>::run});
  table->push_back({"setp.nan.f16", "Phh", Compare<is_nan<f16, true, uint32_t>>::run});
  table->push_back({"setp.num.bf16", "Phh", Compare<is_nan<bf16, false, uint32_t>>::run});
  table->push_back({"setp.nan.bf16", "Phh", Compare<is_nan<bf16, true, uint32_t>>::run});
  table->push_back({"and.pred", "Ppp", combine<Logic::kAnd>});
  table->push_back({"or.pred", "Ppp", combine<Logic::kOr>});
  table->push_back({"xor.pred", "Ppp", combine<Logic::kXor>});
  table->push_back({"not.pred", "Pp", invert});
  table->push_back({"mov.pred", "Pp", move});
  for (const char* type : {"b16", "u16", "s16", "f16", "bf16"}) {
    table->push_back({std::string("selp.") + type, "Hhhp", select<uint32_t>});
  }
  for (const char* type : {"b32", "u32", "s32", "f32"}) {
    table->push_back({std::string("selp.") + type, "Wwwp", select<uint32_t>});
  }
  for (const char* type : {"b64", "u64", "s64", "f64"}) {
    table->push_back({std::string("selp.") + type, "Qqqp", select<uint64_t>});
  }
}

}  // namespace ptx
