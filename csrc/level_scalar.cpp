// The level `scalar`: plain C++ on the compiler's baseline.
#include "simd_portable.h"

#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "probes.h"

namespace wm {
extern const Level level_scalar = {
    "scalar", kWidth, kRows, kTile, false, false, nullptr, nullptr, nullptr,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
