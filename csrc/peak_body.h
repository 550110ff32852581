// The loop behind every Peak: enough independent chains to hide the latency of the instruction, few enough for the
// sixteen registers of AVX2.
#pragma once

#include "peak.h"

namespace {

// `start` makes an accumulator of a number, `step` does one instruction on it, worth `flops`, `first` takes a float out.
template <class Start, class Step, class First>
inline int64_t run_chains(int64_t rounds, float* sink, int64_t flops, Start start, Step step, First first) {
  // Variables, not an array, which GCC keeps in memory here; and different starts, or the chains become one.
  auto a = start(0), b = start(1), c = start(2), d = start(3), e = start(4), f = start(5);
  auto g = start(6), h = start(7), i = start(8), j = start(9), k = start(10), l = start(11);
  for (int64_t round = 0; round < rounds; ++round) {
    a = step(a), b = step(b), c = step(c), d = step(d), e = step(e), f = step(f);
    g = step(g), h = step(h), i = step(i), j = step(j), k = step(k), l = step(l);
  }
  *sink = first(a) + first(b) + first(c) + first(d) + first(e) + first(f) + first(g) + first(h) + first(i) + first(j) +
          first(k) + first(l);
  return rounds * 12 * flops;
}

}  // namespace
