// The level `avx512_bf16`: AVX-512 with bf16 and VNNI.
#include "simd_avx512.h"

#include "dream_body.h"
#include "mdn_body.h"

namespace wm {
extern const Level level_avx512_bf16 = {"avx512_bf16", kWidth, kRows, true, true,
                                  scratch_bytes, rollout, map, philox_words,
                                  heads_scratch, run_heads};
}
