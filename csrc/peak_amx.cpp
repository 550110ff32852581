#include "amx_unit.h"
#include "peak.h"

namespace {

// Four sums, for the latency of one: `step` adds to all four.
template <class Step>
int64_t run_tiles(int64_t rounds, float* sink, int64_t depth, const Step& step) {
  AmxUnit amx;
  const float zeros[kAmxRows] = {};
  each<8>([&](auto tile) WM_FLAT { amx.load<tile>(zeros, 0); });
  for (int64_t round = 0; round < rounds; ++round) step(amx);
  float sums[kAmxRows][kAmxRows];
  amx.store<0>(sums, kAmxBytes);
  *sink = sums[0][0];
  return rounds * 4 * kAmxRows * kAmxRows * depth * 2;
}

}  // namespace

int64_t wm::peak_amx_bf16(int64_t rounds, float* sink) {
  return run_tiles(rounds, sink, 32, [](AmxUnit& amx) WM_FLAT {
    each<4>([&](auto sum) WM_FLAT { amx.add_bf16<sum, 4, 5>(); });
  });
}

int64_t wm::peak_amx_int8(int64_t rounds, float* sink) {
  return run_tiles(rounds, sink, 64, [](AmxUnit& amx) WM_FLAT {
    each<4>([&](auto sum) WM_FLAT { amx.add_int8<sum, 4, 5>(); });
  });
}
