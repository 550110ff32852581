// Matrix products: rows of activations (rollouts) times packed weights, on register tiles.
//
//   in   x, h [rows, depth] row-major, as the precision multiplies them; a wm::Matrix [depth, columns] packed in groups
//        of kGroup vectors of columns (job.h)
//   out  sums [rows][vectors] in registers, for the LSTM's cell (lstm.h), or y [rows, columns]
//
// A register tile is R rows by N vectors of columns. The activations are broadcast from row-major rows, the weights
// stream in packed order. Every accumulator adds its products in the same order whatever R and N are, so a rollout's
// numbers do not depend on the rows beside it.
#pragma once

#include "precision.h"

namespace {

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

// acc[r][j] = the products of rows of h with one group of N columns, bias added. `h_scale[r]` is what one unit of an
// int8 row is worth.
template <class Mode, int R, int N>
WM_INLINE void multiply_hidden(F (&acc)[R][N], const typename Mode::Hidden* const (&h)[R], const float (&h_scale)[R],
                               const Matrix& m, int64_t group, int64_t depth) {
  typedef typename Mode::Hidden Hidden;
  const int64_t column = group * kGroup * kWidth;
  const float* bias = m.bias + column;
  const auto* weights = group_weights<Hidden>(m, group, depth);
  if constexpr (Mode::kQuantised) {
    typename Dot<Hidden>::Sum sum[R][N];
    each<N>([&](auto j) WM_FLAT {
      typename Dot<Hidden>::Sum start = {};
#if defined(__AVX512VNNI__)
      if constexpr (Dot<Hidden>::kTogether == 4) start = (I)_mm512_loadu_si512(m.offset + column + j * kWidth);
#endif
      each<R>([&](auto r) WM_FLAT { sum[r][j] = start; });
    });
    accumulate<Hidden, R, N>(sum, h, weights, padded<Hidden>(depth));
    each<N>([&](auto j) WM_FLAT {
      const F scale = load(m.scale + column + j * kWidth), start = load(bias + j * kWidth);
      each<R>([&](auto r) WM_FLAT { acc[r][j] = fma(to_float(sum[r][j]), set1(h_scale[r]) * scale, start); });
    });
  } else {
    each<N>([&](auto j) WM_FLAT {
      const F start = load(bias + j * kWidth);
      each<R>([&](auto r) WM_FLAT { acc[r][j] = start; });
    });
    accumulate<Hidden, R, N>(acc, h, weights, padded<Hidden>(depth));
  }
}

// y[r] = h[r] W + b for R rows and one group of N columns.
template <class Mode, int R, int N>
inline void multiply_group(const typename Mode::Hidden* const (&h)[R], const float (&h_scale)[R], const Matrix& m,
                           int64_t group, int64_t depth, float* const (&y)[R]) {
  F acc[R][N];
  multiply_hidden<Mode, R, N>(acc, h, h_scale, m, group, depth);
  each<R>([&](auto r) WM_FLAT {
    each<N>([&](auto j) WM_FLAT { store(y[r] + (group * kGroup + j) * kWidth, acc[r][j]); });
  });
}

// Calls body(Count<R>, first row) for all rows in register tiles of kRows and one smaller tile at the end.
template <int R, class Body>
inline void smaller_tile(int64_t rows, int64_t first, const Body& body) {
  if constexpr (R > 0) {
    if (rows == R)
      body(Count<R>(), first);
    else
      smaller_tile<R - 1>(rows, first, body);
  }
}
template <class Body>
inline void for_tiles(int64_t rows, const Body& body) {
  int64_t first = 0;
  for (; first + kRows <= rows; first += kRows) body(Count<kRows>(), first);
  smaller_tile<kRows - 1>(rows - first, first, body);
}

// y[row] = W h[row] + b for all columns of one matrix and n rows, those that row_of(0 .. n-1) names.
template <class Mode, class RowOf>
inline void multiply(const Matrix& m, int64_t depth, int64_t n, const RowOf& row_of, const typename Mode::Hidden* h,
                     int64_t h_row, const float* h_scale, float* y, int64_t y_row) {
  typedef typename Mode::Hidden Hidden;
  const int64_t groups = (m.vectors + kGroup - 1) / kGroup;
  for (int64_t group = 0; group < groups; ++group) {
    for_tiles(n, [&](auto count, int64_t first) {
      constexpr int R = decltype(count)::value;
      const Hidden* x[R];
      float* out[R];
      float scale[R];
      for (int r = 0; r < R; ++r) {
        const int64_t row = row_of(first + r);
        x[r] = h + row * h_row;
        out[r] = y + row * y_row;
        scale[r] = Mode::kQuantised ? h_scale[row] : 0.0f;
      }
      with_vectors(m.vectors - group * kGroup, [&](auto vectors) WM_FLAT {
        multiply_group<Mode, R, decltype(vectors)::value>(x, scale, m, group, depth, out);
      });
    });
  }
}

}  // namespace
