// A step's fourth phase: its random numbers, each a function of (seed, candidate, episode, step) alone (rng.h), for all
// rows' Philox blocks one after another, so that vectors are full whatever Z is.
//
//   in   every live row's step, episode, candidate; the plan's seed
//   out  its uniforms, for the choice of components and the end, and its normals [Z], which wait where z' will be
#pragma once

#include "tile.h"

namespace {

template <class Mode>
inline bool needs_noise(const Tile<Mode>& tile) {
  return !tile.temperature.zero || tile.plan.sample_done;
}

// The numbers of the blocks, the same in every step. The end has that behind a choice for every dimension, even where
// there is one choice for all (wm_engine/rng.py).
template <class Mode>
inline void number_blocks(Tile<Mode>& tile) {
  const Layout& l = tile.layout;
  for (int64_t i = 0; i < tile.philox_room; ++i) {
    const bool end = tile.plan.sample_done && i % l.step_blocks == l.end_block;
    tile.philox_block[i] = static_cast<uint32_t>(end ? 2 * l.normal_blocks : i % l.step_blocks);
  }
}

template <class Mode>
inline void draw_noise(Tile<Mode>& tile, int64_t live) {
  if (!needs_noise(tile)) return;
  const wm::Plan& plan = tile.plan;
  const int64_t n = tile.layout.step_blocks;
  for (int64_t row = 0; row < live; ++row) {
    const U step = set1(static_cast<uint32_t>(tile.step[row]));
    const U episode = set1(static_cast<uint32_t>(tile.episode[row]));
    const uint32_t candidate = plan.first_candidate + static_cast<uint32_t>(tile.candidate[row]);
    const U who = set1(plan.common_random_numbers ? 0 : candidate);
    for (int64_t i = row * n; i < (row + 1) * n; i += kWidth) {
      store_bits(tile.philox_step + i, step);
      store_bits(tile.philox_episode + i, episode);
      store_bits(tile.philox_candidate + i, who);
    }
  }
  for (int64_t i = 0; i < live * n; i += kWidth)
    uniforms(load(tile.philox_block + i), load(tile.philox_step + i), load(tile.philox_episode + i),
             load(tile.philox_candidate + i), plan.key0, plan.key1, tile.u_first + 2 * i, tile.u_second + 2 * i);
  for (int64_t row = 0; row < live; ++row)
    step_normals(tile.first_uniforms(row), tile.second_uniforms(row), tile.model.latent, tile.state(kNext, row));
}

}  // namespace
