// Where things lie in a tile's rows: sizes that follow from the model and the plan, and stay the same for a whole call.
//
//   in   the Job (job.h)
//   out  a Layout: strides from one row to the next, padded to whole vectors; places of parts within a row
#pragma once

#include "job.h"
#include "precision.h"

namespace {

using wm::Job;

// How `per_dim` takes the dimensions whose chosen components it multiplies: kDims at a time. Group g of a block (a
// vector) of dimensions has g, g + kGroups, ..., so that the folds of the groups fold into the block in order. All
// components of a group should stay in the cache nearest to the core: int8 has room for more of them.
template <class T>
struct Grouping {
  static constexpr int kDims = sizeof(T) == 1 ? 8 : 4, kGroups = kWidth / kDims;
};

// Rows of the tile, and outputs of each, that the controllers make together.
constexpr int kActOutputs = 4, kActRows = kWidth / kActOutputs;

// The strides of a tile's arrays, and where the parts of a row begin.
struct Layout {
  int64_t hidden_at;                // of h in a state row [z, a, ..., h]
  int64_t state_row, cell_row, reward_end_row, head_row, component_row, units_row;  // elements
  int64_t chosen_row;               // vectors
  // A rollout's random numbers of a step come from Philox blocks of four words, in this order: the normals, the choice
  // of components, and where it is sampled the end.
  int64_t normal_blocks;            // ceil(Z/4)
  int64_t choice_block, end_block;  // the first of each
  int64_t step_blocks;              // all of them
};

inline Layout layout_of(const Job& job) {
  const wm::Model& m = job.model;
  Layout l;
  l.hidden_at = round_up(m.latent + m.action, kWidth);
  l.cell_row = m.unit_blocks * kWidth;
  l.state_row = l.hidden_at + l.cell_row;
  l.reward_end_row = round_up(2 * m.reward_end.count, kWidth) + kWidth;
  l.head_row = m.latent_blocks * kWidth * (m.per_dim ? m.mixtures : 2);
  l.component_row = m.per_dim ? m.latent_blocks * kWidth : 0;
  l.chosen_row = m.per_dim ? m.latent_blocks * 2 * Grouping<float>::kGroups : 0;
  l.units_row = round_up(job.controller.hidden_units, kWidth);
  l.normal_blocks = (m.latent + 3) / 4;
  l.choice_block = l.normal_blocks;
  l.end_block = l.normal_blocks + (m.per_dim ? l.normal_blocks : 1);
  l.step_blocks = l.end_block + (job.plan.sample_done ? 1 : 0);
  return l;
}

}  // namespace
