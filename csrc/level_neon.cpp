// The level `neon`: ARM NEON with FMA, which every 64-bit ARM processor has.
#define WM_NEON
#include "simd_portable.h"

#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "peak.h"
#include "probes.h"

namespace wm {
extern const Level level_neon = {
    "neon", kWidth, kRows, kTile, false, false, peak_neon_f32, nullptr, nullptr,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
