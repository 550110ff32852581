// Eight float lanes: AVX2 with FMA. See simd_portable.h for the vocabulary.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kWidth = 8;
#if defined(WM_ROWS)
constexpr int kRows = WM_ROWS;
#else
constexpr int kRows = 3;  // 3 x 4 accumulators, 3 broadcasts and a weight fill the 16 registers
#endif
constexpr int kCellRows = 1;  // rows whose cells are computed side by side

typedef __m256 F;
typedef __m256 M;
struct U {
  __m256i v;
};

struct Pair {
  F low, high;
};

inline U operator^(U a, U b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline U operator&(U a, U b) { return {_mm256_and_si256(a.v, b.v)}; }
inline U operator|(U a, U b) { return {_mm256_or_si256(a.v, b.v)}; }
inline U operator+(U a, U b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline U operator>>(U a, int n) { return {_mm256_srli_epi32(a.v, n)}; }

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline U load(const uint32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F load_first(const float* p, int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane));
}
inline F set1(float x) { return _mm256_set1_ps(x); }
inline U set1(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }

inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F as_float(U a) { return _mm256_castsi256_ps(a.v); }
inline U as_bits(F a) { return {_mm256_castps_si256(a)}; }
inline F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
inline M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline M at_least(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
// min and max return their second operand where either is NaN, so a NaN in x comes through both.
inline F at_most(F x, F high) { return _mm256_min_ps(high, x); }
inline F not_below(F x, F low) { return _mm256_max_ps(low, x); }
inline F absolute(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline F root(F x) { return _mm256_sqrt_ps(x); }
inline F nearest(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale_by_power(F x, F n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline F whole_to_float(U x) { return _mm256_cvtepi32_ps(x.v); }
inline F exponent_of(F x) { return whole_to_float(as_bits(x) >> 23) - set1(126.0f); }
inline F mantissa_of(F x) { return as_float((as_bits(x) & set1(0x007fffffu)) | set1(0x3f000000u)); }

inline void multiply_wide(U a, uint32_t by, U& high, U& low) {
  const __m256i m = _mm256_set1_epi32(static_cast<int>(by));
  const __m256i even = _mm256_mul_epu32(a.v, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), m);
  high.v = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  low.v = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
inline Pair interleave(F a, F b) {
  const F low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}

inline float sum(F v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(F v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace
