// A thread's tile of rollouts through all their steps: the body that every level compiles. A step's phases, in order:
//
//   step_controller.h  act                     z, h, c         -> action (or it is given)
//   step_gates.h       advance_lstm            z, action, h, c -> h', c'
//   step_reward_end.h  predict_reward_and_end  h'              -> reward, end
//   step_noise.h       draw_noise              counters        -> uniforms, normals
//   step_head.h        draw_shared or _per_dim h', the numbers -> z' (or z' - z)
//   lanes.h            finish_and_refill       reward, end     -> returns, lengths; other rollouts for those that ended
//
// What they hand to each other lies in tile.h. Nothing is allocated here, and no row's numbers depend on another's.
#pragma once

#include "lanes.h"
#include "laps.h"
#include "step_controller.h"
#include "step_gates.h"
#include "step_head.h"
#include "step_noise.h"
#include "step_reward_end.h"

namespace {

template <class Mode>
inline void dream(Tile<Mode>& tile, const Hooks& hooks, int64_t rows) {
  number_blocks(tile);
  int64_t live = fill(tile, hooks, rows);
  Stopwatch watch(hooks);
  constexpr int kTogether = Mode::kTiles ? kTile : kRows;
  int64_t row_steps = 0;
  while (live > 0 && !hooks.stopped(hooks.context)) {
    const int64_t rows_now = live;
    row_steps += round_up(rows_now, kTogether);
    act(tile, live);
    watch.lap(wm::Phase::controller, rows_now);
    advance_lstm(tile, live);
    watch.lap(wm::Phase::gates, rows_now);
    predict_reward_and_end(tile, live);
    watch.lap(wm::Phase::reward_and_end, rows_now);
    draw_noise(tile, live);
    watch.lap(wm::Phase::noise, rows_now);
    if (tile.model.per_dim)
      draw_per_dim(tile, live, watch);
    else
      draw_shared(tile, live, watch);
    tile.next_becomes_now();
    live = finish_and_refill(tile, hooks, live);
    watch.lap(wm::Phase::ends, rows_now);
  }
  hooks.worked(hooks.context, row_steps);
}

void rollout(const Job& job, const Hooks& hooks, void* scratch, int64_t rows) {
  with_mode(job.model, [&](auto mode) {
    Arena arena{static_cast<char*>(scratch), 0};
    Tile<decltype(mode)> tile(arena, job, rows);
    dream(tile, hooks, rows);
  });
}

size_t scratch_bytes(const Job& job, int64_t rows) {
  Arena arena{nullptr, 0};
  with_mode(job.model, [&](auto mode) { Tile<decltype(mode)>(arena, job, rows); });
  return arena.used;
}

}  // namespace
