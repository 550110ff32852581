// The level `amx`: AVX-512 with the bf16 and int8 dot products, and AMX's tiles for the matrix products of bf16 and int8.
#define WM_AMX
#include "simd_avx512.h"

#include "amx_body.h"
#include "dream_body.h"
#include "dream_lanes.h"
#include "mdn_body.h"
#include "peak.h"
#include "probes.h"

namespace wm {
extern const Level level_amx = {
    "amx", kWidth, kRows, kTile, true, true, peak_avx512_f32, peak_amx_bf16, peak_amx_int8,
    scratch_bytes, rollout, map, philox_words, heads_scratch, run_heads, run_lanes};
}
