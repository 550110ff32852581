// The matrix products of a step, and the LSTM cell on their accumulators.
//
// A register tile is R rows (rollouts) by N vectors of columns. The activations are broadcast from row-major rows, the
// weights stream in packed order. Every accumulator adds its products in the same order whatever R and N are, so a
// rollout's numbers do not depend on the rows beside it.
#pragma once

#include "job.h"
#include "maths.h"
#include "unroll.h"

namespace {

using wm::Element;
using wm::Matrix;

constexpr int kGroup = 4;  // vectors of a column group

// body(Count<N>()) with N the vectors of a column group where `left` are left from its first on.
template <class Body>
WM_INLINE void with_vectors(int64_t left, const Body& body) {
  if (left >= 4)
    body(Count<4>());
  else if (left == 3)
    body(Count<3>());
  else if (left == 2)
    body(Count<2>());
  else
    body(Count<1>());
}

// Whether the matrix products of bf16 and int8 are AMX's (amx_body.h). A tile is kTile rows of activations, and of weights
// kTile times the depth of one dot product; without AMX a row and a dot product are taken by themselves.
#if defined(WM_AMX)
constexpr bool kAmx = true;
constexpr int kTile = 16;
#else
constexpr bool kAmx = false;
constexpr int kTile = 1;
#endif
template <class Mode>
struct Amx;

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
  static constexpr bool kCopies = false, kQuantised = false, kTiles = false;
};
struct Bf16 {
  typedef Half In;
  typedef Half Hid;
  static constexpr bool kCopies = true, kQuantised = false, kTiles = kAmx;
};
struct Bf16AsFloat {
  typedef float In;
  typedef float Hid;
  static constexpr bool kCopies = true, kQuantised = false, kTiles = false;
};
struct Int8 {
  typedef Half In;
  typedef uint8_t Hid;
  static constexpr bool kCopies = true, kQuantised = true, kTiles = kAmx;
};
// Where there is no dot product of bf16: z and a are rounded to it, but multiplied as floats.
struct Int8FloatInput {
  typedef float In;
  typedef uint8_t Hid;
  static constexpr bool kCopies = true, kQuantised = true, kTiles = false;
};
struct Int8AsFloat {
  typedef float In;
  typedef float Hid;
  static constexpr bool kCopies = true, kQuantised = true, kTiles = false;
};

// One instruction's work on a lane: how many elements it multiplies, and how it adds their products up.
template <class T>
struct Dot;

template <>
struct Dot<float> {
  typedef float Weight;
  typedef F Vector;  // of an element spread over the lanes, of a row's elements, and of weights
  typedef F Sum;
  static constexpr int64_t kTogether = 1;
  static WM_INLINE Vector spread(const float* x) { return set1(*x); }
  static WM_INLINE Vector row(const float* x) { return load(x); }
  static WM_INLINE Vector weights(const float* w) { return load(w); }
  static WM_INLINE Sum sums(const float* start) { return load(start); }
  static WM_INLINE Sum add(Vector x, Vector w, Sum sum) { return fma(x, w, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<Half> {
  typedef Half Weight;
  typedef __m512i Vector;
  typedef F Sum;
  static constexpr int64_t kTogether = 2;
  static WM_INLINE Vector spread(const Half* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static WM_INLINE Vector row(const Half* x) { return _mm512_loadu_si512(x); }
  static WM_INLINE Vector weights(const Half* w) { return _mm512_loadu_si512(w); }
  static WM_INLINE Sum sums(const Half* start) { return _mm512_loadu_ps(start); }
  static WM_INLINE Sum add(Vector x, Vector w, Sum sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
};
#endif

#if defined(__AVX512VNNI__)
// Typed as 32-bit lanes throughout: through __m512i, which has 64-bit ones, GCC 12 copies every accumulator in every turn.
typedef int32_t I __attribute__((vector_size(64)));

template <>
struct Dot<uint8_t> {
  typedef int8_t Weight;
  typedef I Vector;
  typedef I Sum;
  static constexpr int64_t kTogether = 4;
  static WM_INLINE Vector spread(const uint8_t* x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, sizeof quad);
    return (I)_mm512_set1_epi32(quad);
  }
  static WM_INLINE Vector row(const uint8_t* x) { return (I)_mm512_loadu_si512(x); }
  static WM_INLINE Vector weights(const int8_t* w) { return (I)_mm512_loadu_si512(w); }
  static WM_INLINE Sum sums(const int8_t* start) { return (I)_mm512_loadu_si512(start); }
  static WM_INLINE Sum add(Vector x, Vector w, Sum sum) {
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
  }
};
#endif

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
template <class T>
inline int64_t padded(int64_t n) {
  return round_up(n, Dot<T>::kTogether * (sizeof(T) < sizeof(float) ? kTile : 1));
}

// sum[r][j] += x[r] W[:, j] over `depth` elements, a multiple of what one instruction takes.
template <class T, int R, int N>
WM_INLINE void accumulate(typename Dot<T>::Sum (&sum)[R][N], const T* const (&x)[R], const typename Dot<T>::Weight* w,
                          int64_t depth) {
  typedef Dot<T> D;
  constexpr int64_t kStep = D::kTogether, kVector = kWidth * D::kTogether;
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += kStep, w += N * kVector) {
    typename D::Vector column[N];
    each<N>([&](auto j) WM_FLAT { column[j] = D::weights(w + j * kVector); });
    each<R>([&](auto r) WM_FLAT {
      const typename D::Vector row = D::spread(x[r] + k);
      each<N>([&](auto j) WM_FLAT { sum[r][j] = D::add(row, column[j], sum[r][j]); });
    });
  }
}

template <class T>
inline const typename Dot<T>::Weight* group_weights(const Matrix& m, int64_t group, int64_t depth) {
  return static_cast<const typename Dot<T>::Weight*>(m.weights) + group * kGroup * kWidth * padded<T>(depth);
}

WM_INLINE F to_float(F sum) { return sum; }
#if defined(__AVX512VNNI__)
WM_INLINE F to_float(I sum) { return _mm512_cvtepi32_ps((__m512i)sum); }
#endif

// acc[r][j] = the products of rows of h with one group of N columns, bias added. `unit[r]` is one unit of an int8 row.
template <class Mode, int R, int N>
WM_INLINE void multiply_hidden(F (&acc)[R][N], const typename Mode::Hid* const (&h)[R], const float (&unit)[R],
                               const Matrix& m, int64_t group, int64_t depth) {
  typedef typename Mode::Hid Hid;
  const int64_t column = group * kGroup * kWidth;
  const float* bias = m.bias + column;
  const auto* weights = group_weights<Hid>(m, group, depth);
  if constexpr (Mode::kQuantised) {
    typename Dot<Hid>::Sum sum[R][N];
    each<N>([&](auto j) WM_FLAT {
      typename Dot<Hid>::Sum start = {};
#if defined(__AVX512VNNI__)
      if constexpr (Dot<Hid>::kTogether == 4) start = (I)_mm512_loadu_si512(m.offset + column + j * kWidth);
#endif
      each<R>([&](auto r) WM_FLAT { sum[r][j] = start; });
    });
    accumulate<Hid, R, N>(sum, h, weights, padded<Hid>(depth));
    each<N>([&](auto j) WM_FLAT {
      const F scale = load(m.scale + column + j * kWidth), start = load(bias + j * kWidth);
      each<R>([&](auto r) WM_FLAT { acc[r][j] = fma(to_float(sum[r][j]), set1(unit[r]) * scale, start); });
    });
  } else {
    each<N>([&](auto j) WM_FLAT {
      const F start = load(bias + j * kWidth);
      each<R>([&](auto r) WM_FLAT { acc[r][j] = start; });
    });
    accumulate<Hid, R, N>(acc, h, weights, padded<Hid>(depth));
  }
}

// y[r] = h[r] W + b for R rows and one group of N columns.
template <class Mode, int R, int N>
inline void multiply_group(const typename Mode::Hid* const (&h)[R], const float (&unit)[R], const Matrix& m,
                           int64_t group, int64_t depth, float* const (&y)[R]) {
  F acc[R][N];
  multiply_hidden<Mode, R, N>(acc, h, unit, m, group, depth);
  each<R>([&](auto r) WM_FLAT {
    each<N>([&](auto j) WM_FLAT { store(y[r] + (group * kGroup + j) * kWidth, acc[r][j]); });
  });
}

// The cell of N rows from their gates' sums, which are overwritten.
//   c' = sigmoid(f) c + sigmoid(i) tanh(g),  h' = sigmoid(o) tanh(c')
// A sigmoid and the tanh that it multiplies are one division: both are ratios. Their denominators' product may
// overflow, where the sigmoid is below 1e-35; 0 is right there.
template <int N>
WM_INLINE void lstm_cell(F (&sums)[N][kGroup], float* const (&c)[N], float* const (&h)[N]) {
  F gate[3 * N], candidate[N], cell[N], below[N];
  each<N>([&](auto r) WM_FLAT {
    gate[3 * r] = sums[r][0];
    gate[3 * r + 1] = sums[r][1];
    gate[3 * r + 2] = sums[r][3];
    candidate[r] = sums[r][2];
  });
  sigmoid_denominators(gate);
  hyperbolic_ratios(candidate, below);
  each<N>([&](auto r) WM_FLAT {
    cell[r] = load(c[r]) / gate[3 * r + 1] + candidate[r] / (below[r] * gate[3 * r]);
    store(c[r], cell[r]);
  });
  hyperbolic_ratios(cell, below);
  each<N>([&](auto r) WM_FLAT { store(h[r], cell[r] / (below[r] * gate[3 * r + 2])); });
}

// One block of kWidth units for R rows: gates, cell and output.
template <class Mode, int R>
inline void lstm_block(const wm::Model& m, int64_t block, const typename Mode::In* const (&in)[R],
                       const typename Mode::Hid* const (&h)[R], const float (&unit)[R], float* const (&c)[R],
                       float* const (&h_next)[R]) {
  typedef typename Mode::In In;
  const int64_t depth = m.latent + m.action;
  F acc[R][kGroup];
  multiply_hidden<Mode, R, kGroup>(acc, h, unit, m.gates_hidden, block, m.hidden);
  accumulate<In, R, kGroup>(acc, in, group_weights<In>(m.gates_input, block, depth), padded<In>(depth));
  each<(R + kCellRows - 1) / kCellRows>([&](auto part) WM_FLAT {
    constexpr int kFirst = decltype(part)::value * kCellRows, kCount = R - kFirst < kCellRows ? R - kFirst : kCellRows;
    F sums[kCount][kGroup];
    float *cell[kCount], *out[kCount];
    each<kCount>([&](auto r) WM_FLAT {
      each<kGroup>([&](auto j) WM_FLAT { sums[r][j] = acc[kFirst + r][j]; });
      cell[r] = c[kFirst + r] + block * kWidth;
      out[r] = h_next[kFirst + r] + block * kWidth;
    });
    lstm_cell<kCount>(sums, cell, out);
  });
}

}  // namespace
