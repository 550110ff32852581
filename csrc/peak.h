// The instruction peak of a processor: multiply-adds on registers alone, the roof of any matrix product.
//
// No std:: templates here, as in job.h: the levels are compiled with instructions of their own.
#pragma once

#include <stdint.h>

namespace wm {

// Every one does `rounds` times some independent multiply-adds and returns how many flops that was (two each). `sink`
// takes a value that depends on all of them. Defined where the compiler knows the instructions.
int64_t peak_avx2_f32(int64_t rounds, float* sink);
int64_t peak_avx512_f32(int64_t rounds, float* sink);
int64_t peak_avx512_int8(int64_t rounds, float* sink);
int64_t peak_avx512_bf16(int64_t rounds, float* sink);
int64_t peak_amx_bf16(int64_t rounds, float* sink);
int64_t peak_amx_int8(int64_t rounds, float* sink);
int64_t peak_neon_f32(int64_t rounds, float* sink);

}  // namespace wm
