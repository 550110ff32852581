// The matrix products of a step, and the LSTM cell on their accumulators.
//
// A register tile is R rows (rollouts) by N vectors of columns. The activations are broadcast from row-major rows, the
// weights stream in packed order. Every accumulator adds its products in the same order whatever R and N are, so a
// rollout's numbers do not depend on the rows beside it.
#pragma once

#include "job.h"
#include "maths.h"

namespace {

using wm::Element;
using wm::Matrix;

#define WM_INLINE inline __attribute__((always_inline))

constexpr int kGroup = 4;  // vectors of a column group

typedef uint16_t Half;

inline float from_half(Half x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}
// Round to nearest even; a NaN stays one.
inline Half to_half(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Half>((bits >> 16) | 0x40u);
  return static_cast<Half>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// How a precision keeps what it multiplies: In for [z, a], Hid for h.
struct Fp32 {
  typedef float In;
  typedef float Hid;
  static constexpr bool kCopies = false, kQuantised = false;
};
struct Bf16 {
  typedef Half In;
  typedef Half Hid;
  static constexpr bool kCopies = true, kQuantised = false;
};
struct Bf16AsFloat {
  typedef float In;
  typedef float Hid;
  static constexpr bool kCopies = true, kQuantised = false;
};
struct Int8 {
  typedef Half In;
  typedef uint8_t Hid;
  static constexpr bool kCopies = true, kQuantised = true;
};
struct Int8AsFloat {
  typedef float In;
  typedef float Hid;
  static constexpr bool kCopies = true, kQuantised = true;
};

template <class T>
struct Pack;  // elements multiplied by one instruction in one lane
template <>
struct Pack<float> {
  static constexpr int64_t kCount = 1;
};
template <>
struct Pack<Half> {
  static constexpr int64_t kCount = 2;
};
template <>
struct Pack<uint8_t> {
  static constexpr int64_t kCount = 4;
};
template <class T>
inline int64_t padded(int64_t n) {
  return (n + Pack<T>::kCount - 1) / Pack<T>::kCount * Pack<T>::kCount;
}
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <int R, int N>
WM_INLINE void accumulate(F (&acc)[R][N], const float* const (&x)[R], const float* w, int64_t depth) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, w += N * kWidth) {
    F b[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) b[j] = load(w + j * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F a = set1(x[r][k]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[r][j] = fma(a, b[j], acc[r][j]);
    }
  }
}

#if defined(__AVX512BF16__)
template <int R, int N>
WM_INLINE void accumulate(F (&acc)[R][N], const Half* const (&x)[R], const Half* w, int64_t depth) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += 2, w += N * kWidth * 2) {
    __m512i b[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) b[j] = _mm512_loadu_si512(w + j * kWidth * 2);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, x[r] + k, sizeof pair);
      const __m512i a = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], (__m512bh)a, (__m512bh)b[j]);
    }
  }
}
#endif

#if defined(__AVX512VNNI__)
template <int R, int N>
WM_INLINE void accumulate(__m512i (&acc)[R][N], const uint8_t* const (&x)[R], const int8_t* w, int64_t depth) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += 4, w += N * kWidth * 4) {
    __m512i b[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) b[j] = _mm512_loadu_si512(w + j * kWidth * 4);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t quad;
      __builtin_memcpy(&quad, x[r] + k, sizeof quad);
      const __m512i a = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[r][j] = _mm512_dpbusd_epi32(acc[r][j], a, b[j]);
    }
  }
}
#endif

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

template <class T>
inline const T* group_weights(const Matrix& m, int64_t group, int64_t depth) {
  return static_cast<const T*>(m.weights) + group * kGroup * kWidth * depth;
}

// The products of rows of h with one group of N columns, bias added.
template <class Mode, int R, int N>
WM_INLINE void multiply_hidden(F (&acc)[R][N], const typename Mode::Hid* const (&h)[R], const float (&unit)[R],
                               const Matrix& m, int64_t group, int64_t depth) {
  const int64_t column = group * kGroup * kWidth;
#if defined(__AVX512VNNI__)
  if constexpr (Same<typename Mode::Hid, uint8_t>::value) {
    __m512i whole[R][N];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < N; ++j) whole[r][j] = _mm512_loadu_si512(m.offset + column + j * kWidth);
    accumulate<R, N>(whole, h, group_weights<int8_t>(m, group, padded<uint8_t>(depth)), padded<uint8_t>(depth));
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < N; ++j)
        acc[r][j] = fma(_mm512_cvtepi32_ps(whole[r][j]), set1(unit[r]) * load(m.scale + column + j * kWidth),
                        load(m.bias + column + j * kWidth));
    return;
  } else
#endif
  {
    typedef typename Mode::Hid Hid;
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < N; ++j) acc[r][j] = Mode::kQuantised ? set1(0.0f) : load(m.bias + column + j * kWidth);
    accumulate<R, N>(acc, h, group_weights<Hid>(m, group, padded<Hid>(depth)), padded<Hid>(depth));
    if constexpr (Mode::kQuantised) {
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < N; ++j)
          acc[r][j] = fma(acc[r][j], set1(unit[r]) * load(m.scale + column + j * kWidth),
                          load(m.bias + column + j * kWidth));
    }
  }
}

// y[r] = x[r] W + b for R rows and all column groups of one matrix with f32 or hidden elements.
template <class Mode, int R, int N>
inline void multiply_group(const typename Mode::Hid* const (&h)[R], const float (&unit)[R], const Matrix& m,
                           int64_t group, int64_t depth, float* const (&y)[R]) {
  F acc[R][N];
  multiply_hidden<Mode, R, N>(acc, h, unit, m, group, depth);
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) store(y[r] + (group * kGroup + j) * kWidth, acc[r][j]);
}

// One block of kWidth units for R rows: gates, cell and output. `state` is [z, a] and h as floats.
//   c' = sigmoid(f) c + sigmoid(i) tanh(g),  h' = sigmoid(o) tanh(c')
template <class Mode, int R>
inline void lstm_block(const wm::Model& m, int64_t block, const typename Mode::In* const (&in)[R],
                       const typename Mode::Hid* const (&h)[R], const float (&unit)[R], float* const (&c)[R],
                       float* const (&h_next)[R]) {
  typedef typename Mode::In In;
  const int64_t depth = padded<In>(m.latent + m.action);
  F acc[R][kGroup];
  multiply_hidden<Mode, R, kGroup>(acc, h, unit, m.gates_hidden, block, m.hidden);
  accumulate<R, kGroup>(acc, in, group_weights<In>(m.gates_input, block, depth), depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F i = sigmoid(acc[r][0]), f = sigmoid(acc[r][1]), g = hyperbolic_tangent(acc[r][2]), o = sigmoid(acc[r][3]);
    const F cell = fma(f, load(c[r] + block * kWidth), i * g);
    store(c[r] + block * kWidth, cell);
    store(h_next[r] + block * kWidth, o * hyperbolic_tangent(cell));
  }
}

}  // namespace
