// A step's second phase, the LSTM: gates and cells of all units, block by block of kWidth units, so that a block's
// weights are read once for all rows.
//
//   in   every live row's [z, a], h as they are multiplied now; c [H]
//   out  c in place; h' [H] in the next state, and as it is multiplied
#pragma once

#include "lstm.h"
#include "operands.h"

namespace {

template <class Mode>
inline void advance_units(Tile<Mode>& tile, int64_t live, int64_t block, const typename Mode::Input* in,
                          int64_t in_row) {
  for_tiles(live, [&](auto count, int64_t first) {
    constexpr int R = decltype(count)::value;
    const typename Mode::Input* x[R];
    const typename Mode::Hidden* h[R];
    float *c[R], *next[R], scale[R];
    for (int r = 0; r < R; ++r) {
      x[r] = in + (first + r) * in_row;
      h[r] = tile.operand(kNow, first + r);
      c[r] = tile.cell(first + r);
      next[r] = tile.hidden(kNext, first + r);
      scale[r] = Mode::kQuantised ? tile.scales(kNow)[first + r] : 0.0f;
    }
    lstm_block<Mode, R>(tile.model, block, x, h, scale, c, next);
  });
}

template <class Mode>
inline void advance_lstm(Tile<Mode>& tile, int64_t live) {
  const wm::Model& m = tile.model;
  const Layout& l = tile.layout;
  const int64_t in_row = Mode::kCopies ? tile.input_row : l.state_row;
  const typename Mode::Input* in = nullptr;
  if constexpr (Mode::kCopies)
    in = tile.inputs;
  else
    in = tile.state(kNow, 0);
  if constexpr (Mode::kTiles)
    Amx<Mode>::gates(m, live, in, in_row, tile.operand(kNow, 0), tile.operand_row(), tile.scales(kNow), tile.cell(0),
                     l.cell_row, tile.hidden(kNext, 0), l.state_row);
  else
    for (int64_t block = 0; block < m.unit_blocks; ++block) advance_units(tile, live, block, in, in_row);
  for (int64_t row = 0; row < live; ++row) {
    // What pads h would be NaN where an input is infinite, and is multiplied by weights of 0.
    for (int64_t i = m.hidden; i < l.cell_row; ++i) tile.hidden(kNext, row)[i] = 0.0f;
    keep_hidden(tile, kNext, row);
  }
}

}  // namespace
