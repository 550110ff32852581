// A step's first phase, the controllers: features to actions. A controller is linear, or has one layer of hidden units
// (Ha & Schmidhuber 2018, section 2.3, and its appendix).
//
//   in   every live row's z [Z], h [H], c [H] as they are now; its candidate's parameters, of params [P, D]
//   out  its action [A], behind z in its state, and [z, a] as they are multiplied
//
// Or actions are given in the controllers' place, [P, T, A].
//
// A layer's parameters are its weights [outputs, inputs] and then its biases [outputs]. Few rows share them, so that
// the layers are dot products (dots.h), of kActRows rows and kActOutputs outputs of each at a time: one vector of sums.
#pragma once

#include "operands.h"

namespace {

using wm::Squash;

inline F squashed(Squash squash, F x) {
  switch (squash) {
    case Squash::tanh:
      return hyperbolic_tangent(x);
    case Squash::sigmoid:
      return sigmoid(x);
    case Squash::tanh01:
      return (hyperbolic_tangent(x) + set1(1.0f)) * set1(0.5f);
    case Squash::relu_tanh:
      return not_below(hyperbolic_tangent(x), set1(0.0f));
    case Squash::identity:
      return x;
  }
  return x;
}

inline void one_hot_of_largest(float* a, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i)
    if (a[i] > a[best]) best = i;
  for (int64_t i = 0; i < n; ++i) a[i] = i == best ? 1.0f : 0.0f;
}

// One layer of kActRows rows' controllers, which begin at w: calls put(r, i, output i of row r) for all outputs.
// add(r, sums, weights) adds row r's products with four rows of weights.
template <class Add, class Put>
WM_INLINE void controller_layer(const float* const (&w)[kActRows], int64_t outputs, int64_t inputs, const Add& add,
                                const Put& put) {
  for (int64_t i = 0; i < outputs; i += kActOutputs) {
    F part[kActRows];
    for (int r = 0; r < kActRows; ++r) {
      F products[kActOutputs];
      const float* weights[kActOutputs];
      each<kActOutputs>([&](auto j) WM_FLAT {
        weights[j] = w[r] + (i + j < outputs ? i + j : i) * inputs;
        products[j] = set1(0.0f);
      });
      add(r, products, weights);
      part[r] = folded<kActOutputs>(products);
    }
    float sums[kWidth];
    store(sums, folded<kActRows>(part));
    for (int r = 0; r < kActRows; ++r)
      for (int64_t j = 0; j < kActOutputs && i + j < outputs; ++j)
        put(r, i + j, sums[r + j * kActRows] + w[r][outputs * inputs + i + j]);
  }
}

// A vector of rows' actions in place; a row with one that is not finite is marked.
template <class Mode>
inline void squash_actions(Tile<Mode>& tile, int64_t first, int64_t rows) {
  const wm::Controller& c = tile.controller;
  float finite[kWidth];
  F check = set1(0.0f);
  for (int64_t i = 0; i < tile.model.action; ++i) {
    float* action = tile.actions + i * tile.action_row + first;
    const F x = load(action);
    check = fma(x, set1(0.0f), check);
    if (!c.argmax) store(action, squashed(c.squash[i], x));
  }
  store(finite, check);
  for (int64_t r = 0; r < rows; ++r)
    if (finite[r] != 0.0f) tile.failed[first + r] = true;
}

// An open loop: each row's action is the one given for its candidate and step.
template <class Mode>
inline void act_as_given(Tile<Mode>& tile, int64_t live) {
  const wm::Plan& plan = tile.plan;
  const int64_t actions = tile.model.action;
  for (int64_t row = 0; row < live; ++row) {
    const float* given = plan.given + (tile.candidate[row] * plan.steps + tile.step[row]) * actions;
    float* a = tile.state(kNow, row) + tile.model.latent;
    for (int64_t i = 0; i < actions; ++i) a[i] = given[i];
    keep_input(tile, row);
  }
}

template <class Mode>
inline void act(Tile<Mode>& tile, int64_t live) {
  if (tile.plan.given) return act_as_given(tile, live);
  const wm::Model& m = tile.model;
  const wm::Controller& c = tile.controller;
  const int64_t actions = m.action, units = c.hidden_units;
  for (int64_t first = 0; first < live; first += kActRows) {
    int64_t row[kActRows];  // the first one in the place of those beyond the last
    const float* w[kActRows];
    for (int r = 0; r < kActRows; ++r) {
      row[r] = first + r < live ? first + r : first;
      w[r] = tile.plan.params + tile.candidate[row[r]] * c.size;
    }
    const auto features = [&](int r, auto& sums, auto& weights) WM_FLAT {
      add_products(sums, weights, tile.state(kNow, row[r]), m.latent);
      if (c.use_h) add_products(sums, weights, tile.hidden(kNow, row[r]), m.hidden);
      if (c.use_c) add_products(sums, weights, tile.cell(row[r]), m.hidden);
    };
    const auto act_as = [&](int r, int64_t i, float x) WM_FLAT { tile.actions[i * tile.action_row + first + r] = x; };
    if (units == 0) {
      controller_layer(w, actions, c.features, features, act_as);
      continue;
    }
    const auto units_of = [&](int r) WM_FLAT { return tile.units + r * tile.layout.units_row; };
    controller_layer(w, units, c.features, features, [&](int r, int64_t i, float x) WM_FLAT { units_of(r)[i] = x; });
    for (int64_t i = 0; i < kActRows * tile.layout.units_row; i += kWidth)
      store(tile.units + i, hyperbolic_tangent(load(tile.units + i)));
    for (int r = 0; r < kActRows; ++r) w[r] += units * (c.features + 1);
    const auto hidden_units = [&](int r, auto& sums, auto& weights) WM_FLAT {
      add_products(sums, weights, units_of(r), units);
    };
    controller_layer(w, actions, units, hidden_units, act_as);
  }
  for (int64_t first = 0; first < live; first += kWidth)
    squash_actions(tile, first, live - first < kWidth ? live - first : kWidth);
  for (int64_t row = 0; row < live; ++row) {
    const float* action = tile.actions + row;
    float* a = tile.state(kNow, row) + m.latent;
    for (int64_t i = 0; i < actions; ++i) a[i] = action[i * tile.action_row];
    if (c.argmax) one_hot_of_largest(a, actions);
    keep_input(tile, row);
  }
}

}  // namespace
