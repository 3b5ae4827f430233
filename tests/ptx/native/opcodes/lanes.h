// What opcodes are made of: functions of one lane, mapped over the lanes of a warp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ptx/native/machine.h"

namespace ptx {

constexpr uint32_t kNan32 = 0x7FFFFFFF;  // the one NaN that fp32 arithmetic gives
constexpr uint32_t kNan16 = 0x7FFF;      // that of fp16 and of bf16

inline float f32(uint32_t bits) { return std::bit_cast<float>(bits); }
inline double f64(uint64_t bits) { return std::bit_cast<double>(bits); }
inline uint32_t bits_of(float value) { return value != value ? kNan32 : std::bit_cast<uint32_t>(value); }
inline uint64_t bits_of(double value) { return std::bit_cast<uint64_t>(value); }
inline uint32_t flushed(uint32_t bits) { return (bits & 0x7F800000) == 0 ? bits & 0x80000000 : bits; }

inline float bf16(uint32_t bits) { return f32(bits << 16); }
inline uint32_t bf16_bits(float value) {  // to nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return value != value ? kNan16 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

float f16(uint32_t bits);
uint32_t f16_bits(float value);

// Map<f>::run stores f of the operands' lanes: its result is the first operand.
template <auto f>
struct Map;

template <typename D, typename A, D (*f)(A)>
struct Map<f> {
  static void run(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
    const A* a = warp.in<A>(in[1]);
    D out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = f(a[lane]);
    warp.put(in[0], out, mask);
  }
};

template <typename D, typename A, typename B, D (*f)(A, B)>
struct Map<f> {
  static void run(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
    const A* a = warp.in<A>(in[1]);
    const B* b = warp.in<B>(in[2]);
    D out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = f(a[lane], b[lane]);
    warp.put(in[0], out, mask);
  }
};

template <typename D, typename A, typename B, typename C, D (*f)(A, B, C)>
struct Map<f> {
  static void run(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
    const A* a = warp.in<A>(in[1]);
    const B* b = warp.in<B>(in[2]);
    const C* c = warp.in<C>(in[3]);
    D out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = f(a[lane], b[lane], c[lane]);
    warp.put(in[0], out, mask);
  }
};

// Compare<f>::run stores the predicate f of the operands' lanes.
template <auto f>
struct Compare;

template <typename A, bool (*f)(A, A)>
struct Compare<f> {
  static void run(Machine&, Warp& warp, const Instruction& in, uint32_t mask) {
    const A* a = warp.in<A>(in[1]);
    const A* b = warp.in<A>(in[2]);
    uint32_t out = 0;
    for (int lane = 0; lane < kLanes; ++lane) out |= static_cast<uint32_t>(f(a[lane], b[lane])) << lane;
    warp.put_predicate(in[0], out, mask);
  }
};

using Opcodes = std::vector<Opcode>;
void add_integers(Opcodes* table);
void add_floats(Opcodes* table);
void add_comparisons(Opcodes* table);
void add_conversions(Opcodes* table);
void add_moves(Opcodes* table);
void add_memory(Opcodes* table);
void add_copies(Opcodes* table);
void add_matrices(Opcodes* table);
void add_wgmma(Opcodes* table);

}  // namespace ptx
