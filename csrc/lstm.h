// The LSTM cell (Hochreiter & Schmidhuber 1997), on its gates' sums while they are in registers.
//
//   in   z, a and h of R rows, as the precision multiplies them; c [R, H]
//   out  c in place; h' [R, H]
#pragma once

#include "maths.h"
#include "products.h"

namespace {

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
inline void lstm_block(const wm::Model& m, int64_t block, const typename Mode::Input* const (&in)[R],
                       const typename Mode::Hidden* const (&h)[R], const float (&h_scale)[R], float* const (&c)[R],
                       float* const (&h_next)[R]) {
  typedef typename Mode::Input Input;
  const int64_t depth = m.latent + m.action;
  F acc[R][kGroup];
  multiply_hidden<Mode, R, kGroup>(acc, h, h_scale, m.gates_hidden, block, m.hidden);
  accumulate<Input, R, kGroup>(acc, in, group_weights<Input>(m.gates_input, block, depth), padded<Input>(depth));
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
