// The level `avx512_vnni`: AVX-512 with the int8 dot product alone; bf16 as on `avx512`.
#include "simd_avx512.h"

#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "peak.h"
#include "probes.h"

namespace wm {
extern const Level level_avx512_vnni = {
    "avx512_vnni", kWidth, kRows, kTile, false, true, peak_avx512_f32, nullptr, peak_avx512_int8,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
