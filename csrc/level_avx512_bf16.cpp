// The level `avx512_bf16`: AVX-512 with the bf16 and int8 dot products.
#include "simd_avx512.h"

#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "peak.h"
#include "probes.h"

namespace wm {
extern const Level level_avx512_bf16 = {
    "avx512_bf16", kWidth, kRows, kTile, true, true, peak_avx512_f32, peak_avx512_bf16, peak_avx512_int8,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
