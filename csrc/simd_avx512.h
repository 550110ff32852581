// Sixteen float lanes: AVX-512 F, BW, DQ and VL; with the bf16 and int8 dot products where the flags allow them.
// See simd_portable.h for the vocabulary.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kWidth = 16;
#if defined(WM_ROWS)
constexpr int kRows = WM_ROWS;
#else
constexpr int kRows = 6;  // 6 x 4 accumulators, 4 weights and a broadcast: 29 of 32 registers
#endif
constexpr int kCellRows = 2;  // rows whose cells are computed side by side

typedef __m512 F;
typedef __mmask16 M;
struct U {
  __m512i v;
};

struct Pair {
  F low, high;
};

inline U operator^(U a, U b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline U operator&(U a, U b) { return {_mm512_and_si512(a.v, b.v)}; }
inline U operator|(U a, U b) { return {_mm512_or_si512(a.v, b.v)}; }
inline U operator+(U a, U b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline U operator>>(U a, int n) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(n))}; }

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline U load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}
inline F set1(float x) { return _mm512_set1_ps(x); }
inline U set1(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }

inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F as_float(U a) { return _mm512_castsi512_ps(a.v); }
inline U as_bits(F a) { return {_mm512_castps_si512(a)}; }
inline F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
inline M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline M at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
// min and max return their second operand where either is NaN, so a NaN in x comes through both.
inline F at_most(F x, F high) { return _mm512_min_ps(high, x); }
inline F not_below(F x, F low) { return _mm512_max_ps(low, x); }
inline F absolute(F x) { return _mm512_abs_ps(x); }
inline F root(F x) { return _mm512_sqrt_ps(x); }
inline F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale_by_power(F x, F n) { return _mm512_scalef_ps(x, n); }
inline F whole_to_float(U x) { return _mm512_cvtepi32_ps(x.v); }
inline F exponent_of(F x) { return whole_to_float(as_bits(x) >> 23) - set1(126.0f); }
inline F mantissa_of(F x) { return as_float((as_bits(x) & set1(0x007fffffu)) | set1(0x3f000000u)); }

inline void multiply_wide(U a, uint32_t by, U& high, U& low) {
  const __m512i m = _mm512_set1_epi32(static_cast<int>(by));
  const __m512i even = _mm512_mul_epu32(a.v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), m);
  high.v = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  low.v = _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
}
inline Pair interleave(F a, F b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return {_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)};
}

inline float sum(F v) { return _mm512_reduce_add_ps(v); }
inline float largest(F v) { return _mm512_reduce_max_ps(v); }

}  // namespace
