// Arithmetic of fp32, fp64, fp16 and bf16. What PTX rounds correctly is rounded correctly here; what it
// approximates is the correctly rounded result, or one next to it, by way of fp64.
#include "ptx/native/opcodes/lanes.h"

namespace ptx {

float f16(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
  if (exponent == 0x1F) return f32(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return f32(sign | (exponent + 112) << 23 | fraction << 13);
}

uint32_t f16_bits(float value) {  // to nearest, ties to even
  if (value != value) return kNan16;
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7C00;
  // At the scale of fp16's denormals the sum rounds to a multiple of 2^-24.
  if (size < 0x1p-14f) return sign | (std::bit_cast<uint32_t>(size + 0.5f) - std::bit_cast<uint32_t>(0.5f));
  const uint32_t whole = (bits & 0x7FFFFFFF) - (112u << 23);
  return sign | (whole + 0xFFF + (whole >> 13 & 1)) >> 13;
}

namespace {

template <typename T>
struct Float {
  using L = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static T of(L bits) { return std::bit_cast<T>(bits); }
  static constexpr L kSign = L{1} << (8 * sizeof(T) - 1);

  static L add(L a, L b) { return bits_of(of(a) + of(b)); }
  static L sub(L a, L b) { return bits_of(of(a) - of(b)); }
  static L mul(L a, L b) { return bits_of(of(a) * of(b)); }
  static L div(L a, L b) { return bits_of(of(a) / of(b)); }
  static L fma(L a, L b, L c) { return bits_of(std::fma(of(a), of(b), of(c))); }
  static L sqrt(L a) { return bits_of(std::sqrt(of(a))); }
  static L rcp(L a) { return bits_of(T{1} / of(a)); }
  static L neg(L a) { return a ^ kSign; }
  static L abs(L a) { return a & ~kSign; }
  // A number before NaN, and -0 before +0.
  static L min(L a, L b) {
    if (of(a) != of(a)) return of(b) != of(b) ? bits_of(of(b)) : b;
    if (of(b) != of(b)) return a;
    if (of(a) == of(b)) return a | b;
    return of(a) < of(b) ? a : b;
  }
  static L max(L a, L b) {
    if (of(a) != of(a)) return of(b) != of(b) ? bits_of(of(b)) : b;
    if (of(b) != of(b)) return a;
    if (of(a) == of(b)) return a & b;
    return of(a) > of(b) ? a : b;
  }
  // NaN before numbers.
  static L min_nan(L a, L b) { return of(a) != of(a) || of(b) != of(b) ? bits_of(of(a) + of(b)) : min(a, b); }
  static L max_nan(L a, L b) { return of(a) != of(a) || of(b) != of(b) ? bits_of(of(a) + of(b)) : max(a, b); }
  static L copysign(L a, L b) { return (b & ~kSign) | (a & kSign); }  // the sign of a
};

using F = Float<float>;
using G = Float<double>;

// By fp64, in which each of these is exact enough to be rounded once.
uint32_t near(double value) { return bits_of(static_cast<float>(value)); }
uint32_t ex2(uint32_t a) { return near(std::exp2(static_cast<double>(f32(a)))); }
uint32_t lg2(uint32_t a) { return near(std::log2(static_cast<double>(f32(a)))); }
uint32_t rsqrt(uint32_t a) { return near(1.0 / std::sqrt(static_cast<double>(f32(a)))); }
uint32_t sine(uint32_t a) { return near(std::sin(static_cast<double>(f32(a)))); }
uint32_t cosine(uint32_t a) { return near(std::cos(static_cast<double>(f32(a)))); }
uint32_t tanh(uint32_t a) { return near(std::tanh(static_cast<double>(f32(a)))); }

// The same, with denormals read and written as zeros.
template <uint32_t (*f)(uint32_t)>
uint32_t ftz(uint32_t a) {
  return flushed(f(flushed(a)));
}
template <uint32_t (*f)(uint32_t, uint32_t)>
uint32_t ftz(uint32_t a, uint32_t b) {
  return flushed(f(flushed(a), flushed(b)));
}
uint32_t fma_ftz(uint32_t a, uint32_t b, uint32_t c) {
  return flushed(F::fma(flushed(a), flushed(b), flushed(c)));
}

template <uint32_t (*f)(uint32_t)>
void add_unary(Opcodes* table, const std::string& name) {
  table->push_back({name + ".f32", "Ww", Map<f>::run});
  table->push_back({name + ".ftz.f32", "Ww", Map<static_cast<uint32_t (*)(uint32_t)>(ftz<f>)>::run});
}
template <uint32_t (*f)(uint32_t, uint32_t)>
void add_binary(Opcodes* table, const std::string& name) {
  table->push_back({name + ".f32", "Www", Map<f>::run});
  table->push_back(
      {name + ".ftz.f32", "Www", Map<static_cast<uint32_t (*)(uint32_t, uint32_t)>(ftz<f>)>::run});
}

// fp16 and bf16: fp32 rounded once is right for one operation; for a fused one see half_fma.
template <float (*from)(uint32_t), uint32_t (*to)(float), uint32_t (*f)(uint32_t, uint32_t)>
uint32_t half(uint32_t a, uint32_t b) {
  return to(f32(f(bits_of(from(a)), bits_of(from(b)))));
}
template <float (*from)(uint32_t), uint32_t (*to)(float), uint32_t (*f)(uint32_t, uint32_t)>
uint32_t pair(uint32_t a, uint32_t b) {
  return half<from, to, f>(a & 0xFFFF, b & 0xFFFF) | half<from, to, f>(a >> 16, b >> 16) << 16;
}
// The neighbour of `near` that is odd, if `error` (what it lacks) is not 0. Rounded again to fewer bits it
// gives what the exact value gives.
template <typename T>
T to_odd(T near, double error) {
  using L = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  if (error != error || error == 0 || std::bit_cast<L>(near) & 1) return near;
  return std::nextafter(near,
                        error > 0 ? std::numeric_limits<T>::infinity() : -std::numeric_limits<T>::infinity());
}
// The product is exact in fp64. Of the sum, and of what fp32 keeps of it, the last bit says that there is
// more.
template <float (*from)(uint32_t), uint32_t (*to)(float)>
uint32_t half_fma(uint32_t a, uint32_t b, uint32_t c) {
  const double product = static_cast<double>(from(a)) * from(b), added = from(c), near = product + added;
  const double back = near - product;
  const double sum = to_odd(near, (product - (near - back)) + (added - back));
  const float cut = static_cast<float>(sum);
  return to(to_odd(cut, sum - static_cast<double>(cut)));
}
template <float (*from)(uint32_t), uint32_t (*to)(float)>
uint32_t pair_fma(uint32_t a, uint32_t b, uint32_t c) {
  return half_fma<from, to>(a & 0xFFFF, b & 0xFFFF, c & 0xFFFF) |
         half_fma<from, to>(a >> 16, b >> 16, c >> 16) << 16;
}
template <uint32_t bits>
uint32_t flip(uint32_t a) {
  return a ^ bits;
}
template <uint32_t bits>
uint32_t keep(uint32_t a) {
  return a & bits;
}

template <float (*from)(uint32_t), uint32_t (*to)(float)>
void add_halves(Opcodes* table, const std::string& type) {
  const auto add = [&](const char* name, Run one, Run two) {
    table->push_back({name + ("." + type), "Hhh", one});
    table->push_back({name + ("." + type) + "x2", "Www", two});
  };
  add("add", Map<half<from, to, F::add>>::run, Map<pair<from, to, F::add>>::run);
  add("sub", Map<half<from, to, F::sub>>::run, Map<pair<from, to, F::sub>>::run);
  add("mul", Map<half<from, to, F::mul>>::run, Map<pair<from, to, F::mul>>::run);
  add("min", Map<half<from, to, F::min>>::run, Map<pair<from, to, F::min>>::run);
  add("max", Map<half<from, to, F::max>>::run, Map<pair<from, to, F::max>>::run);
  add("min.NaN", Map<half<from, to, F::min_nan>>::run, Map<pair<from, to, F::min_nan>>::run);
  add("max.NaN", Map<half<from, to, F::max_nan>>::run, Map<pair<from, to, F::max_nan>>::run);
  table->push_back({"fma." + type, "Hhhh", Map<half_fma<from, to>>::run});
  table->push_back({"fma." + type + "x2", "Wwww", Map<pair_fma<from, to>>::run});
  table->push_back({"neg." + type, "Hh", Map<flip<0x8000>>::run});
  table->push_back({"neg." + type + "x2", "Ww", Map<flip<0x80008000>>::run});
  table->push_back({"abs." + type, "Hh", Map<keep<0x7FFF>>::run});
  table->push_back({"abs." + type + "x2", "Ww", Map<keep<0x7FFF7FFF>>::run});
}

}  // namespace

void add_floats(Opcodes* table) {
  add_binary<F::add>(table, "add");
  add_binary<F::sub>(table, "sub");
  add_binary<F::mul>(table, "mul");
  add_binary<F::div>(table, "div");
  add_binary<F::div>(table, "div.full");
  add_binary<F::div>(table, "div.approx");
  add_binary<F::min>(table, "min");
  add_binary<F::max>(table, "max");
  add_binary<F::min_nan>(table, "min.NaN");
  add_binary<F::max_nan>(table, "max.NaN");
  add_unary<F::neg>(table, "neg");
  add_unary<F::abs>(table, "abs");
  add_unary<F::sqrt>(table, "sqrt");
  add_unary<F::sqrt>(table, "sqrt.approx");
  add_unary<F::rcp>(table, "rcp");
  add_unary<F::rcp>(table, "rcp.approx");
  add_unary<rsqrt>(table, "rsqrt.approx");
  add_unary<ex2>(table, "ex2.approx");
  add_unary<lg2>(table, "lg2.approx");
  add_unary<sine>(table, "sin.approx");
  add_unary<cosine>(table, "cos.approx");
  add_unary<tanh>(table, "tanh.approx");
  for (const char* name : {"fma.f32", "mad.f32"}) table->push_back({name, "Wwww", Map<F::fma>::run});
  table->push_back({"fma.ftz.f32", "Wwww", Map<fma_ftz>::run});
  table->push_back({"copysign.f32", "Www", Map<F::copysign>::run});
  table->push_back({"add.f64", "Qqq", Map<G::add>::run});
  table->push_back({"sub.f64", "Qqq", Map<G::sub>::run});
  table->push_back({"mul.f64", "Qqq", Map<G::mul>::run});
  table->push_back({"div.f64", "Qqq", Map<G::div>::run});
  table->push_back({"fma.f64", "Qqqq", Map<G::fma>::run});
  table->push_back({"min.f64", "Qqq", Map<G::min>::run});
  table->push_back({"max.f64", "Qqq", Map<G::max>::run});
  table->push_back({"sqrt.f64", "Qq", Map<G::sqrt>::run});
  table->push_back({"rcp.f64", "Qq", Map<G::rcp>::run});
  table->push_back({"neg.f64", "Qq", Map<G::neg>::run});
  table->push_back({"abs.f64", "Qq", Map<G::abs>::run});
  table->push_back({"copysign.f64", "Qqq", Map<G::copysign>::run});
  add_halves<f16, f16_bits>(table, "f16");
  add_halves<bf16, bf16_bits>(table, "bf16");
}

}  // namespace ptx
