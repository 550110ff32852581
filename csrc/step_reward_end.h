// A step's third phase: the head's reward and the logit of the end, which are float32 in every precision, and where one
// choice of component is made for all dimensions its logits.
//
//   in   every live row's h' [H], float32
//   out  reward_end [reward, end, and for `shared` K logits]
//
// Too few columns for a register tile: dot products, of as many rows as one pair of weight rows fills a vector with.
#pragma once

#include "tile.h"

namespace {

constexpr int kPairRows = kWidth / 2;

template <class Mode>
inline void predict_reward_and_end(Tile<Mode>& tile, int64_t live) {
  const wm::Pairs& m = tile.model.reward_end;
  for (int64_t pair = 0; pair < m.count; ++pair) {
    const float* const weights[1] = {pair_weights<float>(m, pair * pair_vectors_of(m))};
    for (int64_t first = 0; first < live; first += kPairRows) {
      const float* h[kPairRows];
      for (int r = 0; r < kPairRows; ++r) h[r] = tile.hidden(kNext, first + r < live ? first + r : first);
      F sum[kWidth];
      multiply_pairs<float>(sum, h, weights, m.depth_vectors);
      float both[kWidth];
      store(both, folded<kWidth>(sum));
      for (int r = 0; r < kPairRows && first + r < live; ++r)
        for (int i = 0; i < 2; ++i) tile.reward_end(first + r)[2 * pair + i] = both[2 * r + i];
    }
  }
}

}  // namespace
