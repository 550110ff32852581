// The instruction peak of a processor: multiply-adds on registers alone, the roof of any matrix product.
//
// No std:: templates here, as in job.h: the levels are compiled with instructions of their own.
#pragma once

#include <stdint.h>

namespace wm {

// Does `rounds` times some independent multiply-adds and returns how many flops that was (two each); 0 where the level
// has no such instruction. `sink` takes a value that depends on all of them.
using Peak = int64_t (*)(int64_t rounds, float* sink);

#if defined(WM_X86)
int64_t peak_avx2_f32(int64_t rounds, float* sink);
int64_t peak_avx512_f32(int64_t rounds, float* sink);
int64_t peak_avx512_bf16(int64_t rounds, float* sink);
int64_t peak_avx512_int8(int64_t rounds, float* sink);
#endif
#if defined(WM_NEON)
int64_t peak_neon_f32(int64_t rounds, float* sink);
#endif

}  // namespace wm
