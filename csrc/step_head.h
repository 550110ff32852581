// A step's last phases, the mixture density head: every dimension of z' is drawn from one component, which is chosen
// first, so that only the chosen components' means and deviations are computed. That is exact: nobody asks for the
// others.
//
//   in   every live row's h' as it is multiplied, uniforms, and normals [Z] in the place of z'
//   out  z' [Z], the latent of the next state
//
// draw_shared: one choice a row, for all dimensions. draw_per_dim: a choice for each row and dimension.
#pragma once

#include "laps.h"
#include "lstm.h"
#include "tile.h"

namespace {

// head[row] = W h' + b for all columns of one matrix and the n rows that row_of(0 .. n-1) names.
template <class Mode, class RowOf>
inline void multiply_head(Tile<Mode>& tile, const Matrix& m, int64_t n, const RowOf& row_of) {
  typedef typename Mode::Hidden Hidden;
  const Hidden* h = tile.operand(kNext, 0);
  const int64_t h_row = tile.operand_row();
  if constexpr (Mode::kTiles) {
    if (!tile.model.per_dim) {  // a tile's rows lie at even distances
      for (int64_t i = 0; i < n; ++i)
        __builtin_memcpy(tile.gathered + i * h_row, h + row_of(i) * h_row, static_cast<size_t>(h_row) * sizeof(Hidden));
      h = tile.gathered;
    }
    Amx<Mode>::multiply(m, tile.model.hidden, n, row_of, h, h_row, tile.scales(kNext), tile.head(0),
                        tile.layout.head_row);
  } else {
    multiply<Mode>(m, tile.model.hidden, n, row_of, h, h_row, tile.scales(kNext), tile.head(0), tile.layout.head_row);
  }
}

// A row's block of dimensions of z', over its normals. Of a residual model it is added to z's.
template <class Mode>
inline void draw_block(Tile<Mode>& tile, int64_t row, int64_t block, F mean, F log_std) {
  const Temperature& temperature = tile.temperature;
  float* z = tile.state(kNext, row) + block * kWidth;
  F drawn = temperature.zero ? mean : draw(mean, log_std, load(z), temperature.root);
  if (tile.model.residual) drawn = drawn + load(tile.state(kNow, row) + block * kWidth);
  store(z, drawn);
}

// The rows are taken component by component, so that the weights of each are read once.
template <class Mode>
inline void draw_shared(Tile<Mode>& tile, int64_t live, Stopwatch& watch) {
  const wm::Model& m = tile.model;
  for (int64_t row = 0; row < live; ++row) {
    const float* logits = tile.reward_end(row) + 2;
    const float u = tile.first_uniforms(row)[2 * tile.layout.choice_block];
    tile.row_component[row] = choose(logits, m.mixtures, u, tile.temperature, tile.room);
  }
  watch.lap(wm::Phase::draw, live);
  for (int64_t k = 0; k < m.mixtures; ++k) {
    int64_t n = 0;
    for (int64_t row = 0; row < live; ++row)
      if (tile.row_component[row] == k) tile.order[n++] = row;
    multiply_head(tile, m.mixture[k], n, [&tile](int64_t i) { return tile.order[i]; });
  }
  watch.lap(wm::Phase::mixture, live);
  for (int64_t row = 0; row < live; ++row) {
    const float* head = tile.head(row);
    for (int64_t block = 0; block < m.latent_blocks; ++block, head += 2 * kWidth)
      draw_block(tile, row, block, load(head), load(head + kWidth));
  }
  watch.lap(wm::Phase::draw, live);
}

// The chosen components of one group of dimensions, for all rows, as dot products. In the place of a dimension beyond Z
// stands the group's first one; nobody reads its sums. A function apart: inlined, its loop keeps addresses on the stack.
template <class Mode>
WM_APART void multiply_chosen(Tile<Mode>& tile, int64_t live, int64_t block, int64_t group) {
  typedef typename Mode::Hidden Hidden;
  typedef typename Dot<Hidden>::Weight Weight;
  constexpr int kDims = Grouping<Hidden>::kDims, kGroups = Grouping<Hidden>::kGroups;
  const wm::Pairs& m = tile.model.components;
  const int64_t depth_vectors = m.depth_vectors, pair_vectors = pair_vectors_of(m);
  const int64_t first_dim = block * kWidth + group;
  const int64_t h_row = tile.operand_row(), component_row = tile.layout.component_row;
  const int64_t chosen_row = tile.layout.chosen_row;
  const Weight* of_dim[kDims];
  int64_t lane[kDims];
  each<kDims>([&](auto i) WM_FLAT {
    lane[i] = first_dim + i * kGroups < tile.model.latent ? i * kGroups : 0;
    of_dim[i] = pair_weights<Hidden>(m, (first_dim + lane[i]) * tile.model.mixtures * pair_vectors);
  });
  const uint32_t* component = tile.components(0, block) + group;
  const Hidden* h = tile.operand(kNext, 0);
  typename Dot<Hidden>::Sum* out = tile.chosen(0, block, 0) + group;
  for (int64_t row = 0; row < live; ++row, component += component_row, h += h_row, out += chosen_row) {
    const Weight* weights[kDims];
    each<kDims>([&](auto i) WM_FLAT {
      weights[i] = of_dim[i] + component[lane[i]] * pair_vectors * kWidth * Dot<Hidden>::kTogether;
    });
    const Hidden* const x[1] = {h};
    typename Dot<Hidden>::Sum sum[2 * kDims];
    multiply_pairs<Hidden>(sum, x, weights, depth_vectors);
    each<2>([&](auto part) WM_FLAT { out[part * kGroups] = folded<kDims, 2>(sum + part); });
  }
}

// The chosen means (part 0) or log deviations (1) of a row's block of dimensions.
template <class Mode>
inline F chosen_part(Tile<Mode>& tile, int64_t row, int64_t block, int64_t part) {
  const F sum = to_float(folded<Grouping<typename Mode::Hidden>::kGroups>(tile.chosen(row, block, part)));
  if constexpr (!Mode::kQuantised) return sum;
  const wm::Model& m = tile.model;
  const int64_t mixtures = m.mixtures, at = (block * mixtures * 2 + part) * kWidth;
  const F component = whole_to_float(load(tile.components(row, block)));
  return fma(sum, set1(tile.scales(kNext)[row]) * pick(m.component_scale + at, 2 * kWidth, mixtures, component),
             pick(m.component_bias + at, 2 * kWidth, mixtures, component));
}

// The logits of all rows and dimensions, then of each the chosen component. The rows of a group of dimensions follow
// each other, so that the group's components stay close.
template <class Mode>
inline void draw_per_dim(Tile<Mode>& tile, int64_t live, Stopwatch& watch) {
  constexpr int kGroups = Grouping<typename Mode::Hidden>::kGroups;
  const wm::Model& m = tile.model;
  const int64_t mixtures = m.mixtures, latent = m.latent, blocks = m.latent_blocks;
  multiply_head(tile, m.mixture[0], live, [](int64_t i) { return i; });
  watch.lap(wm::Phase::mixture, live);
  for (int64_t row = 0; row < live; ++row)
    for (int64_t block = 0; block < blocks; ++block) {
      const F u = choice_uniforms(tile.first_uniforms(row), tile.second_uniforms(row), tile.layout.choice_block, block);
      float* logits = tile.head(row) + block * mixtures * kWidth;
      store_bits(tile.components(row, block), float_to_whole(choose_per_dim(logits, mixtures, u, tile.temperature)));
    }
  watch.lap(wm::Phase::draw, live);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t group = 0; group < kGroups && block * kWidth + group < latent; ++group)
      multiply_chosen(tile, live, block, group);
  watch.lap(wm::Phase::mixture, live);
  for (int64_t row = 0; row < live; ++row)
    for (int64_t block = 0; block < blocks; ++block)
      draw_block(tile, row, block, chosen_part(tile, row, block, 0), chosen_part(tile, row, block, 1));
  watch.lap(wm::Phase::draw, live);
}

}  // namespace
