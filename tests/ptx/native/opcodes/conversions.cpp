// cvt: between integers, from and to floating point, and between floating types.
#include <type_traits>

#include "ptx/native/opcodes/lanes.h"

namespace ptx {

namespace {

enum class Rounding { kNearest, kZero, kDown, kUp };

template <Rounding rounding, typename R>
R whole(R value) {
  switch (rounding) {
    case Rounding::kNearest:
      return std::nearbyint(value);
    case Rounding::kZero:
      return std::trunc(value);
    case Rounding::kDown:
      return std::floor(value);
    case Rounding::kUp:
      return std::ceil(value);
  }
}

// Clamped to what T holds. NaN gives 0 from fp32 to at most 32 bits, else the highest bit alone.
template <typename T, Rounding rounding, auto from, typename L>
auto to_integer(L bits) {
  using Lane = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const auto value = whole<rounding>(from(bits));
  constexpr auto low = static_cast<decltype(value)>(std::numeric_limits<T>::min());
  constexpr auto high =
      static_cast<decltype(value)>(std::numeric_limits<T>::max());  // may round up: >= below
  T out;
  if (value != value) {
    constexpr bool is_zero = sizeof(L) < 8 && sizeof(T) < 8;
    out = is_zero ? T{0} : static_cast<T>(std::make_unsigned_t<T>{1} << (8 * sizeof(T) - 1));
  } else if (value <= low) {
    out = std::numeric_limits<T>::min();
  } else if (value >= high) {
    out = std::numeric_limits<T>::max();
  } else {
    out = static_cast<T>(value);
  }
  return static_cast<Lane>(static_cast<std::make_unsigned_t<T>>(out));
}

template <typename T, typename R, typename L>
auto from_integer(L bits) {
  return bits_of(static_cast<R>(static_cast<T>(bits)));
}
template <typename T, uint32_t (*to)(float), typename L>
uint32_t half_from_integer(L bits) {  // exact in fp64, but not always in fp32
  const double value = static_cast<double>(static_cast<T>(bits));
  return to(static_cast<float>(value));
}

// S of a lane, extended by its sign, then cut to D. Of 8 bits 16 are kept: a register has their sign above.
template <typename D, typename S, typename L>
auto between(L bits) {
  using Lane = std::conditional_t<sizeof(D) == 8, uint64_t, uint32_t>;
  using Kept =
      std::conditional_t<sizeof(D) == 1, std::conditional_t<std::is_signed_v<D>, int16_t, uint16_t>, D>;
  return static_cast<Lane>(
      static_cast<std::make_unsigned_t<Kept>>(static_cast<Kept>(static_cast<D>(static_cast<S>(bits)))));
}

uint32_t widen(uint64_t bits) { return bits_of(static_cast<float>(f64(bits))); }
uint64_t lengthen(uint32_t bits) { return bits_of(static_cast<double>(f32(bits))); }
uint32_t of_f16(uint32_t bits) { return bits_of(f16(bits)); }
uint32_t of_bf16(uint32_t bits) { return bits_of(bf16(bits)); }
uint32_t to_f16(uint32_t bits) { return f16_bits(f32(bits)); }
uint32_t to_bf16(uint32_t bits) { return bf16_bits(f32(bits)); }
// The first operand becomes the upper half.
uint32_t to_f16x2(uint32_t high, uint32_t low) { return to_f16(high) << 16 | to_f16(low); }
uint32_t to_bf16x2(uint32_t high, uint32_t low) { return to_bf16(high) << 16 | to_bf16(low); }
uint32_t to_f32_ftz(uint32_t bits) { return flushed(bits); }

template <Rounding rounding>
uint32_t round32(uint32_t bits) {
  return bits_of(whole<rounding>(f32(bits)));
}
template <Rounding rounding>
uint64_t round64(uint64_t bits) {
  return bits_of(whole<rounding>(f64(bits)));
}

template <typename T>
std::string name_of() {
  return (std::is_signed_v<T> ? "s" : "u") + std::to_string(8 * sizeof(T));
}
template <typename T>
constexpr char letter_of() {
  return sizeof(T) == 8 ? 'q' : sizeof(T) == 4 ? 'w' : sizeof(T) == 2 ? 'h' : 'x';
}
char capital(char letter) { return static_cast<char>(letter - 'a' + 'A'); }

template <typename D, typename S>
void add_between(Opcodes* table) {
  using L = std::conditional_t<sizeof(S) == 8, uint64_t, uint32_t>;
  const char to = sizeof(D) == 1 ? 'H' : capital(letter_of<D>());
  table->push_back(
      {"cvt." + name_of<D>() + "." + name_of<S>(), {to, letter_of<S>()}, Map<between<D, S, L>>::run});
}

template <typename D>
void add_integers_to(Opcodes* table) {
  add_between<D, int8_t>(table);
  add_between<D, uint8_t>(table);
  add_between<D, int16_t>(table);
  add_between<D, uint16_t>(table);
  add_between<D, int32_t>(table);
  add_between<D, uint32_t>(table);
  add_between<D, int64_t>(table);
  add_between<D, uint64_t>(table);
}

template <typename T, auto from, typename L>
void add_rounded(Opcodes* table, const std::string& type, char letter) {
  const std::string letters{capital(letter_of<T>()), letter}, tail = "." + name_of<T>() + "." + type;
  for (const char* ftz : {"", ".ftz"}) {  // a denormal rounds as a zero does, but up and down
    table->push_back(
        {std::string("cvt.rni") + ftz + tail, letters, Map<to_integer<T, Rounding::kNearest, from, L>>::run});
    table->push_back(
        {std::string("cvt.rzi") + ftz + tail, letters, Map<to_integer<T, Rounding::kZero, from, L>>::run});
  }
  table->push_back({"cvt.rmi" + tail, letters, Map<to_integer<T, Rounding::kDown, from, L>>::run});
  table->push_back({"cvt.rpi" + tail, letters, Map<to_integer<T, Rounding::kUp, from, L>>::run});
}

template <typename T>
void add_reals(Opcodes* table) {
  using L = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const char letter = letter_of<T>();
  table->push_back({"cvt.rn.f32." + name_of<T>(), {'W', letter}, Map<from_integer<T, float, L>>::run});
  table->push_back({"cvt.rn.f64." + name_of<T>(), {'Q', letter}, Map<from_integer<T, double, L>>::run});
  if constexpr (sizeof(T) < 4) {
    table->push_back(
        {"cvt.rn.f16." + name_of<T>(), {'H', letter}, Map<half_from_integer<T, f16_bits, L>>::run});
    table->push_back(
        {"cvt.rn.bf16." + name_of<T>(), {'H', letter}, Map<half_from_integer<T, bf16_bits, L>>::run});
  }
  if constexpr (sizeof(T) > 1) {
    add_rounded<T, f32, uint32_t>(table, "f32", 'w');
    add_rounded<T, f64, uint64_t>(table, "f64", 'q');
    add_rounded<T, f16, uint32_t>(table, "f16", 'h');
  }
}

template <Rounding rounding>
void add_whole(Opcodes* table, const std::string& name) {
  table->push_back({"cvt." + name + ".f32.f32", "Ww", Map<round32<rounding>>::run});
  table->push_back({"cvt." + name + ".f64.f64", "Qq", Map<round64<rounding>>::run});
}

}  // namespace

void add_conversions(Opcodes* table) {
  add_integers_to<int8_t>(table);
  add_integers_to<uint8_t>(table);
  add_integers_to<int16_t>(table);
  add_integers_to<uint16_t>(table);
  add_integers_to<int32_t>(table);
  add_integers_to<uint32_t>(table);
  add_integers_to<int64_t>(table);
  add_integers_to<uint64_t>(table);
  add_reals<int8_t>(table);
  add_reals<uint8_t>(table);
  add_reals<int16_t>(table);
  add_reals<uint16_t>(table);
  add_reals<int32_t>(table);
  add_reals<uint32_t>(table);
  add_reals<int64_t>(table);
  add_reals<uint64_t>(table);
  add_whole<Rounding::kNearest>(table, "rni");
  add_whole<Rounding::kZero>(table, "rzi");
  add_whole<Rounding::kDown>(table, "rmi");
  add_whole<Rounding::kUp>(table, "rpi");
  table->push_back({"cvt.rn.f32.f64", "Wq", Map<widen>::run});
  table->push_back({"cvt.f64.f32", "Qw", Map<lengthen>::run});
  table->push_back({"cvt.f32.f16", "Wh", Map<of_f16>::run});
  table->push_back({"cvt.f32.bf16", "Wh", Map<of_bf16>::run});
  table->push_back({"cvt.rn.f16.f32", "Hw", Map<to_f16>::run});
  table->push_back({"cvt.rn.bf16.f32", "Hw", Map<to_bf16>::run});
  table->push_back({"cvt.rn.f16x2.f32", "Www", Map<to_f16x2>::run});
  table->push_back({"cvt.rn.bf16x2.f32", "Www", Map<to_bf16x2>::run});
  table->push_back({"cvt.ftz.f32.f32", "Ww", Map<to_f32_ftz>::run});
}

}  // namespace ptx
