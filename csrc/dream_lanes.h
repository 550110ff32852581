// Lanes that are stepped from outside: the dream as an environment, with the phases of a rollout (dream_body.h) and so
// its bits. What a rollout keeps in a tile from step to step lies in the caller's arrays between two calls.
//
//   in   the Job (its plan's starts and results are not looked at); lanes: z [Z], h [H], c [H], action [A], and the words
//        episode and step of each
//   out  step: z, h, c after it, reward, ended, failed
//        act:  the controllers' actions
#pragma once

#include "dream_body.h"

namespace {

using wm::LaneTask;
using wm::Lanes;

// A row in the state of a lane.
template <class Mode>
inline void load_lane(Tile<Mode>& tile, const Lanes& lanes, int64_t row, int64_t lane) {
  const wm::Model& m = tile.model;
  float *s = tile.state(kNow, row), *h = tile.hidden(kNow, row), *c = tile.cell(row);
  for (int64_t i = m.latent + m.action; i < tile.layout.hidden_at; ++i) s[i] = 0.0f;
  for (int64_t i = m.hidden; i < tile.layout.cell_row; ++i) h[i] = c[i] = 0.0f;
  __builtin_memcpy(s, lanes.z + lane * m.latent, static_cast<size_t>(m.latent) * sizeof(float));
  __builtin_memcpy(h, lanes.h + lane * m.hidden, static_cast<size_t>(m.hidden) * sizeof(float));
  __builtin_memcpy(c, lanes.c + lane * m.hidden, static_cast<size_t>(m.hidden) * sizeof(float));
  tile.failed[row] = false;
  keep_hidden(tile, kNow, row);
}

template <class Mode>
inline void act_on_lanes(Tile<Mode>& tile, const Lanes& lanes, int64_t first, int64_t rows) {
  const int64_t each = lanes.count / tile.plan.candidates, actions = tile.model.action;
  for (int64_t row = 0; row < rows; ++row) tile.candidate[row] = (first + row) / each;
  act(tile, rows);
  for (int64_t row = 0; row < rows; ++row)
    __builtin_memcpy(lanes.actions + (first + row) * actions, tile.state(kNow, row) + tile.model.latent,
                     static_cast<size_t>(actions) * sizeof(float));
}

template <class Mode>
inline void step_lanes(Tile<Mode>& tile, const Lanes& lanes, int64_t first, int64_t rows, Stopwatch& watch) {
  const wm::Model& m = tile.model;
  for (int64_t row = 0; row < rows; ++row) {
    tile.candidate[row] = 0;
    tile.episode[row] = lanes.episode[first + row];
    tile.step[row] = static_cast<int32_t>(lanes.step[first + row]);
    __builtin_memcpy(tile.state(kNow, row) + m.latent, lanes.actions + (first + row) * m.action,
                     static_cast<size_t>(m.action) * sizeof(float));
    keep_input(tile, row);
  }
  advance(tile, rows, watch);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t lane = first + row;
    __builtin_memcpy(lanes.z + lane * m.latent, tile.state(kNow, row), static_cast<size_t>(m.latent) * sizeof(float));
    __builtin_memcpy(lanes.h + lane * m.hidden, tile.hidden(kNow, row), static_cast<size_t>(m.hidden) * sizeof(float));
    __builtin_memcpy(lanes.c + lane * m.hidden, tile.cell(row), static_cast<size_t>(m.hidden) * sizeof(float));
    lanes.reward[lane] = tile.plan.survival ? 1.0f : tile.reward_end(row)[0];
    lanes.ended[lane] = has_ended(tile, row);
    lanes.failed[lane] = !is_finite(tile, row, 0.0f);
  }
}

#if defined(WM_PROFILE)
void unwatched(void*, wm::Phase, int64_t, int64_t, int64_t) {}
const Hooks kNoHooks{nullptr, nullptr, nullptr, nullptr, unwatched};
#else
const Hooks kNoHooks{nullptr, nullptr, nullptr, nullptr};
#endif

void run_lanes(LaneTask task, const Job& job, const Lanes& lanes, void* scratch, int64_t rows, int64_t first,
               int64_t end) {
  with_mode(job.model, [&](auto mode) {
    Arena arena{static_cast<char*>(scratch), 0};
    Tile<decltype(mode)> tile(arena, job, rows);
    number_blocks(tile);
    Stopwatch watch(kNoHooks);
    for (; first < end; first += rows) {
      const int64_t live = end - first < rows ? end - first : rows;
      for (int64_t row = 0; row < live; ++row) load_lane(tile, lanes, row, first + row);
      if (task == LaneTask::act)
        act_on_lanes(tile, lanes, first, live);
      else
        step_lanes(tile, lanes, first, live, watch);
    }
  });
}

}  // namespace
