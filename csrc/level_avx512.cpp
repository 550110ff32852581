// The level `avx512`: AVX-512 F, BW, DQ, VL.
#include "simd_avx512.h"

#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "peak.h"
#include "probes.h"

namespace wm {
extern const Level level_avx512 = {
    "avx512", kWidth, kRows, kTile, false, false, peak_avx512_f32, nullptr, nullptr,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
