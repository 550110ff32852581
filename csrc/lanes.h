// Which rollout each row of a tile holds: the first ones, what a step has come to, and who takes the place of one that
// ended.
//
//   in   lanes from the driver (a lane is the plan's episode e of candidate p, p E + e), starts z [N, Z], h and c [N, H],
//        and each step's reward and end
//   out  rows ready to dream; returns and lengths [P, E]; and where they are recorded zs [T, P, E, Z], actions
//        [T, P, E, A] and rewards [T, P, E]
//
// The rows are at steps of their own. A row that ends takes the next lane, and when there is none the last row moves
// into its place, so that the cost follows the steps lived.
#pragma once

#include "operands.h"

namespace {

using wm::Hooks;

// A row at the first step of a lane.
template <class Mode>
inline void begin(Tile<Mode>& tile, int64_t row, int64_t lane) {
  const wm::Model& m = tile.model;
  const wm::Plan& plan = tile.plan;
  const int64_t candidate = lane / plan.episodes;
  const int64_t episode = plan.first_episode + lane % plan.episodes * plan.episode_stride;
  const int64_t start = episode % plan.starts;
  float *s = tile.state(kNow, row), *h = tile.hidden(kNow, row), *c = tile.cell(row);
  for (int64_t i = 0; i < tile.layout.state_row; ++i) s[i] = 0.0f;
  for (int64_t i = 0; i < tile.layout.cell_row; ++i) c[i] = 0.0f;
  for (int64_t i = 0; i < m.latent; ++i) s[i] = plan.z[start * m.latent + i];
  for (int64_t i = 0; i < m.hidden && plan.h; ++i) h[i] = plan.h[start * m.hidden + i];
  for (int64_t i = 0; i < m.hidden && plan.c; ++i) c[i] = plan.c[start * m.hidden + i];
  tile.lane[row] = lane;
  tile.candidate[row] = candidate;
  tile.episode[row] = episode;
  tile.step[row] = 0;
  tile.total[row] = 0.0;
  tile.failed[row] = false;
  keep_hidden(tile, kNow, row);
}

template <class Mode>
inline void move(Tile<Mode>& tile, int64_t to, int64_t from) {
  const Layout& l = tile.layout;
  __builtin_memcpy(tile.state(kNow, to), tile.state(kNow, from), static_cast<size_t>(l.state_row) * sizeof(float));
  __builtin_memcpy(tile.cell(to), tile.cell(from), static_cast<size_t>(l.cell_row) * sizeof(float));
  if constexpr (Mode::kCopies)
    __builtin_memcpy(tile.operand(kNow, to), tile.operand(kNow, from),
                     static_cast<size_t>(tile.hidden_row) * sizeof(typename Mode::Hidden));
  tile.scales(kNow)[to] = tile.scales(kNow)[from];
  tile.lane[to] = tile.lane[from];
  tile.candidate[to] = tile.candidate[from];
  tile.episode[to] = tile.episode[from];
  tile.step[to] = tile.step[from];
  tile.total[to] = tile.total[from];
  tile.failed[to] = tile.failed[from];
}

// Writes down a row's step: the latent it led to, the action that led there, the reward.
template <class Mode>
inline void record(Tile<Mode>& tile, int64_t row, int32_t step, float reward) {
  const wm::Plan& plan = tile.plan;
  const int64_t latent = tile.model.latent, actions = tile.model.action;
  // The states have changed places: the one that the action was chosen in waits to be overwritten.
  const float *z = tile.state(kNow, row), *a = tile.state(kNext, row) + latent;
  const int64_t at = step * plan.candidates * plan.episodes + tile.lane[row];
  for (int64_t j = 0; j < latent; ++j) plan.zs[at * latent + j] = z[j];
  for (int64_t j = 0; j < actions; ++j) plan.actions[at * actions + j] = a[j];
  plan.rewards[at] = reward;
}

template <class Mode>
inline bool is_finite(Tile<Mode>& tile, int64_t row, float total) {
  const float *z = tile.state(kNow, row), *reward_end = tile.reward_end(row);
  const int64_t latent = tile.model.latent;
  // x * 0 is 0 only where x is finite.
  F check = set1((total + reward_end[0] + reward_end[1]) * 0.0f);
  int64_t i = 0;
  for (; i + kWidth <= latent; i += kWidth) check = fma(load(z + i), set1(0.0f), check);
  check = fma(load_first(z + i, latent - i), set1(0.0f), check);
  return !tile.failed[row] && sum(check) == 0.0f;
}

// By the threshold where the end's logit is above 0; sampled, where its probability is above a uniform number.
template <class Mode>
inline bool has_ended(Tile<Mode>& tile, int64_t row) {
  const float logit = tile.reward_end(row)[1];
  if (!tile.plan.sample_done) return logit > 0.0f;
  float probability[kWidth];
  store(probability, sigmoid(set1(logit)));
  return probability[0] > tile.first_uniforms(row)[2 * tile.layout.end_block];
}

// Books the step that a row has taken; true if its rollout is over.
template <class Mode>
inline bool finish_step(Tile<Mode>& tile, int64_t row) {
  const wm::Plan& plan = tile.plan;
  const int64_t lane = tile.lane[row];
  const int32_t step = tile.step[row]++;
  const float reward = plan.survival ? 1.0f : tile.reward_end(row)[0];
  tile.total[row] += static_cast<double>(reward);
  const float total = static_cast<float>(tile.total[row]);
  if (plan.zs) record(tile, row, step, reward);

  const bool finite = is_finite(tile, row, total);
  if (finite && !has_ended(tile, row) && step + 1 < plan.steps) return false;
  plan.returns[lane] = finite ? total : __builtin_nanf("");
  plan.lengths[lane] = step + 1;
  return true;
}

// Begins the first lanes, as many as there are rows for; how many those were.
template <class Mode>
inline int64_t fill(Tile<Mode>& tile, const Hooks& hooks, int64_t rows) {
  int64_t live = 0;
  for (; live < rows; ++live) {
    const int64_t lane = hooks.next_lane(hooks.context);
    if (lane < 0) break;
    begin(tile, live, lane);
  }
  return live;
}

// Books every row's step and refills those that ended; how many are live then.
template <class Mode>
inline int64_t finish_and_refill(Tile<Mode>& tile, const Hooks& hooks, int64_t live) {
  for (int64_t row = live - 1; row >= 0; --row) {
    if (!finish_step(tile, row)) continue;
    const int64_t lane = hooks.next_lane(hooks.context);
    if (lane >= 0)
      begin(tile, row, lane);
    else if (row != --live)
      move(tile, row, live);
  }
  return live;
}

}  // namespace
