// Integer and bitwise arithmetic.
#include <algorithm>
#include <type_traits>

#include "ptx/native/opcodes/lanes.h"

namespace ptx {

namespace {

template <typename T>
using Lane = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// A value as a lane holds it: 16 bits with zeros above.
template <typename T>
Lane<T> held(T value) {
  return static_cast<std::make_unsigned_t<T>>(value);
}

template <typename T>
struct Of {
  using L = Lane<T>;
  using U = std::make_unsigned_t<T>;
  using Wide = std::conditional_t<
      sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
      std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                         std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;
  using WideLane = std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>;
  static constexpr uint32_t kBits = 8 * sizeof(T);

  static L add(L a, L b) { return held<T>(static_cast<T>(a + b)); }
  static L sub(L a, L b) { return held<T>(static_cast<T>(a - b)); }
  static L mul(L a, L b) { return held<T>(static_cast<T>(static_cast<uint64_t>(a) * b)); }
  static L mad(L a, L b, L c) { return add(mul(a, b), c); }
  static L high(L a, L b) {
    return held<T>(static_cast<T>((static_cast<Wide>(static_cast<T>(a)) * static_cast<T>(b)) >> kBits));
  }
  static L mad_high(L a, L b, L c) { return add(high(a, b), c); }
  static WideLane wide(L a, L b) {
    return static_cast<WideLane>(static_cast<Wide>(static_cast<T>(a)) * static_cast<T>(b));
  }
  static WideLane mad_wide(L a, L b, WideLane c) { return wide(a, b) + c; }
  // What a division by 0 gives is the hardware's: all bits, and the dividend for the remainder.
  static L div(L a, L b) {
    if (static_cast<T>(b) == 0) return held<T>(static_cast<T>(~U{0}));
    if (std::is_signed_v<T> && static_cast<T>(b) == static_cast<T>(-1)) return neg(a);
    return held<T>(static_cast<T>(static_cast<T>(a) / static_cast<T>(b)));
  }
  static L rem(L a, L b) {
    if (static_cast<T>(b) == 0) return a;
    if (std::is_signed_v<T> && static_cast<T>(b) == static_cast<T>(-1)) return 0;
    return held<T>(static_cast<T>(static_cast<T>(a) % static_cast<T>(b)));
  }
  static L min(L a, L b) { return held<T>(std::min(static_cast<T>(a), static_cast<T>(b))); }
  static L max(L a, L b) { return held<T>(std::max(static_cast<T>(a), static_cast<T>(b))); }
  static L min_relu(L a, L b) {
    return held<T>(std::max(std::min(static_cast<T>(a), static_cast<T>(b)), T{0}));
  }
  static L max_relu(L a, L b) {
    return held<T>(std::max(std::max(static_cast<T>(a), static_cast<T>(b)), T{0}));
  }
  static L neg(L a) { return held<T>(static_cast<T>(L{0} - a)); }
  static L abs(L a) { return static_cast<T>(a) < 0 ? neg(a) : a; }
  static L shr(L a, uint32_t by) {
    const uint32_t most = std::min(by, kBits - 1);
    const T shifted = static_cast<T>(static_cast<T>(a) >> most);
    return std::is_signed_v<T> || by < kBits ? held<T>(shifted) : 0;
  }
  static L shl(L a, uint32_t by) { return by < kBits ? held<T>(static_cast<T>(a << by)) : 0; }
  static L both(L a, L b) { return a & b; }
  static L either(L a, L b) { return a | b; }
  static L differ(L a, L b) { return a ^ b; }
  static L inverse(L a) { return held<T>(static_cast<T>(~a)); }
  static uint32_t popc(L a) { return static_cast<uint32_t>(std::popcount(a)); }
  static uint32_t clz(L a) { return static_cast<uint32_t>(std::countl_zero(a)); }
  static L bfe(L a, uint32_t from, uint32_t length) {
    from &= 0xFF;
    length &= 0xFF;
    const uint32_t sign_at = std::min(from + length - 1, kBits - 1);
    const bool fills = std::is_signed_v<T> && length > 0 && (a >> sign_at & 1);
    L out = 0;
    for (uint32_t i = 0; i < kBits; ++i) {
      const bool bit = i < length && from + i < kBits ? (a >> (from + i) & 1) : fills;
      out |= static_cast<L>(bit) << i;
    }
    return out;
  }
  static L bfi(L a, L b, uint32_t from, uint32_t length) {
    for (uint32_t i = 0; i < (length & 0xFF) && (from & 0xFF) + i < kBits; ++i) {
      const uint32_t at = (from & 0xFF) + i;
      b = (b & ~(L{1} << at)) | ((a >> i & 1) << at);
    }
    return b;
  }
};

uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> (4 * i) & 0xF;
    uint32_t byte = bytes >> (8 * (choice & 7)) & 0xFF;
    if (choice & 8) byte = byte & 0x80 ? 0xFF : 0;
    out |= byte << (8 * i);
  }
  return out;
}

uint32_t shf_left(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (by & 31) >> 32);
}
uint32_t shf_right(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}

// The table of three inputs is an integer behind them.
void lop3(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const uint32_t *a = warp.in<uint32_t>(in[1]), *b = warp.in<uint32_t>(in[2]), *c = warp.in<uint32_t>(in[3]);
  uint32_t out[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int row = 0; row < 8; ++row) {
      if (!(in[4] >> row & 1)) continue;
      out[lane] |=
          (row & 4 ? a[lane] : ~a[lane]) & (row & 2 ? b[lane] : ~b[lane]) & (row & 1 ? c[lane] : ~c[lane]);
    }
  }
  warp.put(in[0], out, mask);
}

template <typename L, L (*f)(L, L, uint32_t, uint32_t)>
void insert(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
  const L *a = warp.in<L>(in[1]), *b = warp.in<L>(in[2]);
  const uint32_t *from = warp.in<uint32_t>(in[3]), *length = warp.in<uint32_t>(in[4]);
  L out[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = f(a[lane], b[lane], from[lane], length[lane]);
  warp.put(in[0], out, mask);
}

// own: the letter of this type; wide: that of twice its bits.
template <typename T>
void add_type(Opcodes* table, const std::string& type, char own, char wide) {
  using O = Of<T>;
  const auto add = [&](const char* name, const char* shape, Run run) {
    std::string letters;
    for (const char* at = shape; *at; ++at) {
      const auto upper = [](char c) { return static_cast<char>(c - 'a' + 'A'); };
      letters += *at == 'D'   ? upper(own)
                 : *at == 's' ? own
                 : *at == 'E' ? upper(wide)
                 : *at == 'e' ? wide
                              : *at;
    }
    table->push_back({name + ("." + type), letters, run});
  };
  add("add", "Dss", Map<O::add>::run);
  add("sub", "Dss", Map<O::sub>::run);
  add("mul.lo", "Dss", Map<O::mul>::run);
  add("mul.hi", "Dss", Map<O::high>::run);
  add("mad.lo", "Dsss", Map<O::mad>::run);
  add("mad.hi", "Dsss", Map<O::mad_high>::run);
  if constexpr (sizeof(T) < 8) {
    add("mul.wide", "Ess", Map<O::wide>::run);
    add("mad.wide", "Esse", Map<O::mad_wide>::run);
  }
  add("div", "Dss", Map<O::div>::run);
  add("rem", "Dss", Map<O::rem>::run);
  add("min", "Dss", Map<O::min>::run);
  add("max", "Dss", Map<O::max>::run);
  add("shr", "Dsw", Map<O::shr>::run);
  if constexpr (std::is_signed_v<T>) {
    add("neg", "Ds", Map<O::neg>::run);
    add("abs", "Ds", Map<O::abs>::run);
    add("min.relu", "Dss", Map<O::min_relu>::run);
    add("max.relu", "Dss", Map<O::max_relu>::run);
  }
  if constexpr (sizeof(T) > 2) add("bfe", "Dsww", Map<O::bfe>::run);
}

template <typename T>
void add_bits(Opcodes* table, const std::string& type, char own) {
  using O = Of<T>;
  const char upper = static_cast<char>(own - 'a' + 'A');
  const std::string one{upper, own}, two{upper, own, own};
  table->push_back({"and." + type, two, Map<O::both>::run});
  table->push_back({"or." + type, two, Map<O::either>::run});
  table->push_back({"xor." + type, two, Map<O::differ>::run});
  table->push_back({"not." + type, one, Map<O::inverse>::run});
  table->push_back({"shl." + type, one + "w", Map<O::shl>::run});
  table->push_back({"shr." + type, one + "w", Map<O::shr>::run});
  if constexpr (sizeof(T) > 2) {
    table->push_back({"popc." + type, std::string{'W', own}, Map<O::popc>::run});
    table->push_back({"clz." + type, std::string{'W', own}, Map<O::clz>::run});
    table->push_back({"bfi." + type, two + "ww", insert<typename O::L, O::bfi>});
  }
}

}  // namespace

void add_integers(Opcodes* table) {
  add_type<int16_t>(table, "s16", 'h', 'w');
  add_type<uint16_t>(table, "u16", 'h', 'w');
  add_type<int32_t>(table, "s32", 'w', 'q');
  add_type<uint32_t>(table, "u32", 'w', 'q');
  add_type<int64_t>(table, "s64", 'q', 'q');
  add_type<uint64_t>(table, "u64", 'q', 'q');
  add_bits<uint16_t>(table, "b16", 'h');
  add_bits<uint32_t>(table, "b32", 'w');
  add_bits<uint64_t>(table, "b64", 'q');
  table->push_back({"prmt.b32", "Wwww", Map<prmt>::run});
  table->push_back({"shf.l.wrap.b32", "Wwww", Map<shf_left>::run});
  table->push_back({"shf.r.wrap.b32", "Wwww", Map<shf_right>::run});
  table->push_back({"lop3.b32", "Wwwwi", lop3});
}

}  // namespace ptx
