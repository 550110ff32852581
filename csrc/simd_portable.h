// Four float lanes in the compiler's own vector types: the `scalar` level on any processor, where no product is fused
// with a sum, and with WM_NEON the level `neon` of 64-bit ARM.
//
// The three simd_*.h headers spell the same small vocabulary for 4, 8 and 16 lanes; the bodies (dream_body.h, mdn_body.h
// and what they include) are written in it once. Everything has internal linkage: a level is one translation unit
// compiled with its own instruction flags, and no function of it may be shared with another.
#pragma once

#include <cstdint>
#if defined(WM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int kWidth = 4;
#if defined(WM_ROWS)
constexpr int kRows = WM_ROWS;
#elif defined(WM_NEON)
constexpr int kRows = 5;  // 5 x 4 accumulators, 4 weights and 5 elements: 29 of 32 registers (6 rows spill)
#else
constexpr int kRows = 3;  // rows of a register tile: 3 x 4 accumulators, 3 broadcasts and a weight fill 16 registers
#endif
constexpr int kCellRows = 1;  // rows whose cells are computed side by side

typedef float F __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef int32_t M __attribute__((vector_size(16)));  // all ones where true

struct Pair {
  F low, high;
};

// Vectors at any address. Not memcpy: GCC 12 makes that a move of one 128-bit integer on ARM, and then keeps the
// accumulators of a matrix product that are stored this way in memory.
typedef F LooseF __attribute__((aligned(4), may_alias));
typedef U LooseU __attribute__((aligned(4), may_alias));

inline F load(const float* p) { return *reinterpret_cast<const LooseF*>(p); }
inline U load(const uint32_t* p) { return *reinterpret_cast<const LooseU*>(p); }
inline void store(float* p, F v) { *reinterpret_cast<LooseF*>(p) = v; }
inline F load_first(const float* p, int64_t n) {
  F v = {0, 0, 0, 0};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline F set1(float x) { return F{x, x, x, x}; }
inline U set1(uint32_t x) { return U{x, x, x, x}; }

inline F fma(F a, F b, F c) {
#if defined(WM_NEON)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline F as_float(U a) { return (F)a; }
inline U as_bits(F a) { return (U)a; }
inline F select(M m, F yes, F no) { return (F)(((U)m & (U)yes) | (~(U)m & (U)no)); }
inline M less(F a, F b) { return (M)(a < b); }
inline M at_least(F a, F b) { return (M)(a >= b); }
// A NaN in x comes through both.
inline F at_most(F x, F high) { return select(less(high, x), high, x); }
inline F not_below(F x, F low) { return select(less(x, low), low, x); }
inline F absolute(F x) { return as_float(as_bits(x) & set1(0x7fffffffu)); }

inline F root(F x) {
#if defined(WM_NEON)
  return (F)vsqrtq_f32((float32x4_t)x);
#else
  return F{__builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]), __builtin_sqrtf(x[3])};
#endif
}
// Round to nearest even for |x| < 2^22.
inline F nearest(F x) {
  const F magic = set1(12582912.0f);  // 1.5 * 2^23 pushes the fraction out of the mantissa
  return (x + magic) - magic;
}
// x * 2^n for whole n with the result a normal number.
inline F scale_by_power(F x, F n) { return x * as_float(as_bits(n + set1(8388608.0f + 127.0f)) << 23); }
// Whole numbers below 2^23 as floats.
inline F whole_to_float(U x) { return as_float(x | set1(0x4b000000u)) - set1(8388608.0f); }
inline F exponent_of(F x) { return whole_to_float(as_bits(x) >> 23) - set1(126.0f); }
inline F mantissa_of(F x) { return as_float((as_bits(x) & set1(0x007fffffu)) | set1(0x3f000000u)); }

inline void multiply_wide(U a, uint32_t by, U& high, U& low) {
  for (int i = 0; i < kWidth; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * by;
    high[i] = static_cast<uint32_t>(product >> 32);
    low[i] = static_cast<uint32_t>(product);
  }
}
// a0 b0 a1 b1 ..., in two vectors.
inline Pair interleave(F a, F b) { return {F{a[0], b[0], a[1], b[1]}, F{a[2], b[2], a[3], b[3]}}; }

inline float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float largest(F v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}

}  // namespace
