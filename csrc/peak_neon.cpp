#include <arm_neon.h>

#include "peak_body.h"

int64_t wm::peak_neon_f32(int64_t rounds, float* sink) {
  const float32x4_t a = vdupq_n_f32(0.5f), b = vdupq_n_f32(1e-3f);
  return run_chains(
      rounds, sink, 8, [](int n) { return vdupq_n_f32(static_cast<float>(n)); },
      [=](float32x4_t x) { return vfmaq_f32(b, x, a); },
      [](float32x4_t x) { return vgetq_lane_f32(x, 0); });
}
