// The matrix products of a step on AMX's tiles, for bf16 and int8: what products.h and lstm.h do in registers, 16 rows
// at a time. The unit is set up for whole tiles once: rows beyond the last live one are multiplied too, and read by
// nobody.
//
// Tiles 0 to 3 hold sums, of up to four vectors of columns; 4 a tile of rows; 5 to 7 weights.
#pragma once

#include "amx_unit.h"
#include "job.h"
#include "lstm.h"

namespace {

static_assert(kTile == kAmxRows && kWidth * sizeof(float) == kAmxBytes, "a vector is a row of a tile");

template <class Mode>
struct Amx {
  typedef typename Mode::Input Input;
  typedef typename Mode::Hidden Hidden;

  // The LSTM's gates and cells of `live` rows, as lstm_block has them. Rows are so many elements apart; there is memory
  // of `in` and `h` up to whole tiles.
  static void gates(const wm::Model& m, int64_t live, const Input* in, int64_t in_row, const Hidden* h, int64_t h_row,
                    const float* h_scale, float* cell, int64_t cell_row, float* h_next, int64_t next_row) {
    AmxUnit amx;
    const int64_t depth = m.latent + m.action;
    for (int64_t block = 0; block < m.unit_blocks; ++block)
      for (int64_t first = 0; first < live; first += kAmxRows) {
        const int64_t rows = live - first < kAmxRows ? live - first : kAmxRows;
        const auto scale_of = [&](int64_t r) { return h_scale[first + r]; };
        Sums<kGroup> sums;
        start<kGroup>(amx, h + first * h_row, h_row, m.gates_hidden, block, m.hidden);
        if constexpr (Mode::kQuantised) {
          store(amx, sums);
          scale(m.gates_hidden, block, rows, scale_of, sums);
          load(amx, sums);
        }
        accumulate<Input, kGroup>(amx, in + first * in_row, in_row, group_weights<Input>(m.gates_input, block, depth),
                                  padded<Input>(depth));
        store(amx, sums);
        float* const c = cell + first * cell_row + block * kWidth;
        float* const out = h_next + first * next_row + block * kWidth;
        int64_t r = 0;
        for (; r + kCellRows <= rows; r += kCellRows)
          cells<kCellRows>(sums, r, c + r * cell_row, cell_row, out + r * next_row, next_row);
        for (; r < rows; ++r) cells<1>(sums, r, c + r * cell_row, cell_row, out + r * next_row, next_row);
      }
  }

  // y[row_of(i)] = W h[i] + b for all columns of one matrix and the first n rows of h, which has memory up to whole
  // tiles.
  template <class RowOf>
  static void multiply(const Matrix& m, int64_t depth, int64_t n, const RowOf& row_of, const Hidden* h, int64_t h_row,
                       const float* h_scale, float* y, int64_t y_row) {
    if (n == 0) return;
    AmxUnit amx;
    for (int64_t group = 0; group * kGroup < m.vectors; ++group)
      for (int64_t first = 0; first < n; first += kAmxRows) {
        const int64_t rows = n - first < kAmxRows ? n - first : kAmxRows;
        with_vectors(m.vectors - group * kGroup, [&](auto vectors) {
          constexpr int N = decltype(vectors)::value;
          Sums<N> sums;
          start<N>(amx, h + first * h_row, h_row, m, group, depth);
          store(amx, sums);
          if constexpr (Mode::kQuantised)
            scale(m, group, rows, [&](int64_t r) { return h_scale[row_of(first + r)]; }, sums);
          for (int64_t r = 0; r < rows; ++r)
            for (int j = 0; j < N; ++j)
              ::store(y + row_of(first + r) * y_row + (group * kGroup + j) * kWidth, sums.at[r][j]);
        });
      }
  }

 private:
  // What tiles 0 .. N-1 hold, in memory.
  template <int N>
  struct Sums {
    F at[kAmxRows][N];
  };
  static constexpr int kRowsTile = 4, kWeightTiles = 5, kManyWeightTiles = 3;

  template <int N>
  static WM_INLINE void store(AmxUnit& amx, Sums<N>& sums) {
    each<N>([&](auto j) WM_FLAT { amx.store<j>(&sums.at[0][j], N * kAmxBytes); });
  }
  template <int N>
  static WM_INLINE void load(AmxUnit& amx, const Sums<N>& sums) {
    each<N>([&](auto j) WM_FLAT { amx.load<j>(&sums.at[0][j], N * kAmxBytes); });
  }

  // Tiles 0 .. N-1 += x W over `depth` elements, a multiple of what tiles take.
  template <class T, int N>
  static WM_INLINE void accumulate(AmxUnit& amx, const T* x, int64_t x_row, const typename Dot<T>::Weight* w,
                                   int64_t depth) {
    constexpr int64_t kStep = kAmxRows * Dot<T>::kTogether, kVector = kWidth * Dot<T>::kTogether;
    for (int64_t k = 0; k < depth; k += kStep, w += kAmxRows * N * kVector) {
      amx.load<kRowsTile>(x + k, x_row * static_cast<int64_t>(sizeof(T)));
      each<N>([&](auto j) WM_FLAT {
        constexpr int kWeights = kWeightTiles + j % kManyWeightTiles;
        amx.load<kWeights>(w + j * kVector, N * kAmxBytes);
        if constexpr (sizeof(T) == 1)
          amx.add_int8<j, kRowsTile, kWeights>();
        else
          amx.add_bf16<j, kRowsTile, kWeights>();
      });
    }
  }

  // Tiles 0 .. N-1 = h W and the bias, or for int8 what corrects its shifted sums.
  template <int N>
  static WM_INLINE void start(AmxUnit& amx, const Hidden* h, int64_t h_row, const Matrix& m, int64_t group,
                              int64_t depth) {
    const int64_t column = group * kGroup * kWidth;
    each<N>([&](auto j) WM_FLAT {
      // The same row 16 times.
      if constexpr (Mode::kQuantised)
        amx.load<j>(m.offset + column + j * kWidth, 0);
      else
        amx.load<j>(m.bias + column + j * kWidth, 0);
    });
    accumulate<Hidden, N>(amx, h, h_row, group_weights<Hidden>(m, group, depth), padded<Hidden>(depth));
  }

  // Whole sums of int8 products to what they are worth, bias added.
  template <int N, class ScaleOf>
  static WM_INLINE void scale(const Matrix& m, int64_t group, int64_t rows, const ScaleOf& scale_of, Sums<N>& sums) {
    const int64_t column = group * kGroup * kWidth;
    each<N>([&](auto j) WM_FLAT {
      const F of_column = ::load(m.scale + column + j * kWidth), bias = ::load(m.bias + column + j * kWidth);
      for (int64_t r = 0; r < rows; ++r)
        sums.at[r][j] = fma(to_float((I)sums.at[r][j]), set1(scale_of(r)) * of_column, bias);
    });
  }

  // The cells of N rows from row `first` of the sums on.
  template <int N>
  static WM_INLINE void cells(const Sums<kGroup>& sums, int64_t first, float* c, int64_t c_row, float* h,
                              int64_t h_row) {
    F gates[N][kGroup];
    float *cell[N], *out[N];
    each<N>([&](auto r) WM_FLAT {
      each<kGroup>([&](auto j) WM_FLAT { gates[r][j] = sums.at[first + r][j]; });
      cell[r] = c + r * c_row;
      out[r] = h + r * h_row;
    });
    lstm_cell<N>(gates, cell, out);
  }
};

}  // namespace
