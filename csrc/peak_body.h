// The loop behind every Peak: enough independent chains to hide the latency of the instruction.
#pragma once

#include "peak.h"

namespace {

constexpr int kChains = 16;

// `step` does one instruction on an accumulator, `flops` a lane-sum of two flops a multiply-add; `total` adds up.
template <class Vector, class Step, class Total>
inline int64_t run_chains(int64_t rounds, float* sink, Vector zero, int64_t flops, Step step, Total total) {
  Vector chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = zero;
  for (int64_t round = 0; round < rounds; ++round) {
#if defined(__GNUC__)
#pragma GCC unroll 16
#endif
    for (int i = 0; i < kChains; ++i) {
      chains[i] = step(chains[i]);
#if defined(__x86_64__)
      // The compiler may neither merge two rounds nor drop one.
      __asm__ volatile("" : "+v"(chains[i]));
#endif
    }
  }
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) sum += total(chains[i]);
  *sink = sum;
  return rounds * kChains * flops;
}

}  // namespace
