// The level `avx2`: AVX2 and FMA.
#include "simd_avx2.h"

#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "peak.h"
#include "probes.h"

namespace wm {
extern const Level level_avx2 = {
    "avx2", kWidth, kRows, kTile, false, false, peak_avx2_f32, nullptr, nullptr,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
