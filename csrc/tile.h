// A tile: the rollouts, up to some dozens, that one thread takes through their steps together, and all memory of
// theirs. A row of the tile is one rollout; `rows` is how many there is room for, and the first `live` of them hold
// one.
//
//   in   the Job: sizes, packed weights, controllers, plan (job.h)
//   out  arrays for what the phases of a step (step_*.h) hand to each other, each row padded to whole vectors
//
// Letters as in job.h; a `..._row` is how many elements lie from one row to the next (layout.h).
#pragma once

#include "arena.h"
#include "dots.h"
#include "layout.h"
#include "mdn.h"

namespace {

// A step reads the state as it is now and writes the next one; between steps the two change places.
enum When { kNow = 0, kNext = 1 };

// Its memory begins as zeros (Buffer), some of which is never written: what pads rows to whole vectors.
template <class Mode>
class Tile {
 public:
  typedef typename Mode::Input Input;
  typedef typename Mode::Hidden Hidden;
  typedef typename Dot<Hidden>::Sum Sum;

  const wm::Model& model;
  const wm::Controller& controller;
  const wm::Plan& plan;
  const Layout layout;
  const Temperature temperature;

  // Operands where they are copies (operands.h): z and a, and for AMX rows of h' that do not lie side by side.
  Input* inputs;           // [rows, input_row]
  Hidden* gathered;        // [rows, hidden_row]: `shared`, h' of the rows that chose one component
  int64_t input_row, hidden_row;

  // The controllers (step_controller.h).
  float* units;            // [kActRows, units_row]: their hidden units
  float* actions;          // [A, action_row]: an action of all rows side by side
  int64_t action_row;

  // The choice of components where the mixture is `shared` (step_head.h).
  float* room;             // [K up to whole vectors], for cumulated probabilities
  int64_t* row_component;  // [rows]: what a row chose
  int64_t* order;          // [rows]: the rows that chose one component

  // Random numbers (step_noise.h): a step's Philox counters of all rows, row after row, and what uniforms they gave.
  uint32_t *philox_block, *philox_step, *philox_episode, *philox_candidate;  // [philox_room]
  float* u_first;          // [2 philox_room]: of words 0 and 2 of the blocks in turn
  float* u_second;         // [2 philox_room]: of words 1 and 3
  int64_t philox_room;

  // Which rollout a row holds, and how far it is (lanes.h), [rows] each.
  int64_t *lane, *candidate, *episode;
  int32_t* step;           // steps taken
  double* total;           // rewards summed
  bool* failed;            // something became non-finite

  // With an arena that only counts there is no memory: it says how much there must be.
  Tile(Arena& arena, const Job& job, int64_t rows)
      : model(job.model),
        controller(job.controller),
        plan(job.plan),
        layout(layout_of(job)),
        temperature(temperature_of(job.plan.temperature)) {
    const Layout& l = layout;
    input_row = round_up(Mode::kCopies ? padded<Input>(model.latent + model.action) : 0, 64);
    hidden_row = round_up(Mode::kCopies ? l.cell_row : 0, 64);
    for (Hidden*& operand : operands_) operand = take_operands<Hidden>(arena, rows, hidden_row);
    gathered = take_operands<Hidden>(arena, rows, Mode::kTiles && !model.per_dim ? hidden_row : 0);
    inputs = take_operands<Input>(arena, rows, input_row);
    for (int i = 0; i < 2; ++i) {
      states_[i] = arena.take<float>(rows * l.state_row);
      scales_[i] = arena.take<float>(rows);
    }
    cells_ = arena.take<float>(rows * l.cell_row);
    reward_ends_ = arena.take<float>(rows * l.reward_end_row);
    heads_ = arena.take<float>(rows * l.head_row);
    components_ = arena.take<uint32_t>(rows * l.component_row);
    chosen_ = arena.take<Sum>(rows * l.chosen_row);
    units = arena.take<float>(kActRows * l.units_row);
    action_row = round_up(rows, kWidth);
    actions = arena.take<float>(model.action * action_row);
    room = arena.take<float>(l.reward_end_row);
    philox_room = round_up(rows * l.step_blocks, kWidth) + 2 * kWidth;  // rows are written, and read, to whole vectors
    philox_block = arena.take<uint32_t>(philox_room);
    philox_step = arena.take<uint32_t>(philox_room);
    philox_episode = arena.take<uint32_t>(philox_room);
    philox_candidate = arena.take<uint32_t>(philox_room);
    u_first = arena.take<float>(2 * philox_room);
    u_second = arena.take<float>(2 * philox_room);
    lane = arena.take<int64_t>(rows);
    candidate = arena.take<int64_t>(rows);
    episode = arena.take<int64_t>(rows);
    row_component = arena.take<int64_t>(rows);
    order = arena.take<int64_t>(rows);
    step = arena.take<int32_t>(rows);
    total = arena.take<double>(rows);
    failed = arena.take<bool>(rows);
    if (kTile > 1) arena.reach(operands_end_);
  }

  void next_becomes_now() { now_ ^= 1; }

  // [z, a, ..., h] of a row. The action of a step stands in the state it was chosen in.
  float* state(When when, int64_t row) { return states_[now_ ^ when] + row * layout.state_row; }
  float* hidden(When when, int64_t row) { return state(when, row) + layout.hidden_at; }
  float* cell(int64_t row) { return cells_ + row * layout.cell_row; }

  // h of a row as it is multiplied, `operand_row()` elements a row.
  Hidden* operand(When when, int64_t row) {
    if constexpr (Mode::kCopies)
      return operands_[now_ ^ when] + row * hidden_row;
    else
      return hidden(when, row);
  }
  int64_t operand_row() const { return Mode::kCopies ? hidden_row : layout.state_row; }
  // [rows]: what one unit of an int8 h is worth.
  float* scales(When when) { return scales_[now_ ^ when]; }

  // [reward, end] of a row, and for `shared` the K logits.
  float* reward_end(int64_t row) { return reward_ends_ + row * layout.reward_end_row; }
  // What a row got from the head's matrices: `per_dim` the logits [latent_blocks][K][width], `shared` of the chosen
  // component [latent_blocks][mean, log deviation][width].
  float* head(int64_t row) { return heads_ + row * layout.head_row; }
  // `per_dim`: the components that a block of dimensions chose, [width].
  uint32_t* components(int64_t row, int64_t block_of_dims) {
    return components_ + row * layout.component_row + block_of_dims * kWidth;
  }
  // `per_dim`: the chosen means (part 0) or log deviations (part 1) of a block of dimensions, a vector for each group
  // of them, before the last folds.
  Sum* chosen(int64_t row, int64_t block_of_dims, int64_t part) {
    return chosen_ + row * layout.chosen_row + (2 * block_of_dims + part) * Grouping<Hidden>::kGroups;
  }

  // A row's uniforms of a step, two of each a Philox block.
  const float* first_uniforms(int64_t row) const { return u_first + 2 * row * layout.step_blocks; }
  const float* second_uniforms(int64_t row) const { return u_second + 2 * row * layout.step_blocks; }

 private:
  float* states_[2];       // [rows, state_row]: now and next, by turns
  Hidden* operands_[2];    // [rows, hidden_row]
  float* scales_[2];       // [rows]
  float* cells_;           // [rows, cell_row]
  float* reward_ends_;     // [rows, reward_end_row]
  float* heads_;           // [rows, head_row]
  uint32_t* components_;   // [rows, component_row]
  Sum* chosen_;            // [rows, chosen_row]
  int now_ = 0;
  size_t operands_end_ = 0;

  // AMX reads tiles whole: what lies behind the last row is multiplied too, whatever it is, and nobody reads its sums.
  template <class T>
  T* take_operands(Arena& arena, int64_t rows, int64_t row) {
    const size_t end = arena.used + static_cast<size_t>(round_up(rows, kTile) * row) * sizeof(T);
    if (end > operands_end_) operands_end_ = end;
    return arena.take<T>(rows * row);
  }
};

}  // namespace
