// The random-number contract on vectors: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3"), kWidth counters at a time, uniforms and normals. wm_engine/rng.py is the reference.
#pragma once

#include "maths.h"

namespace {

struct Words {
  U w0, w1, w2, w3;
};

inline Words philox(U c0, U c1, U c2, U c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply_wide(c0, 0xd2511f53u, high0, low0);
    multiply_wide(c2, 0xcd9e8d57u, high1, low1);
    c0 = high1 ^ c1 ^ set1(k0);
    c2 = high0 ^ c3 ^ set1(k1);
    c1 = low1;
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {c0, c1, c2, c3};
}

// u = ((x >> 9) + 0.5) 2^-23, in (0, 1) and exact.
inline F unit(U x) { return (whole_to_float(x >> 9) + set1(0.5f)) * set1(1.1920928955078125e-7f); }

// Box-Muller: two normals from two uniforms.
inline Pair box_muller(F u1, F u2) {
  const F radius = root(set1(-2.0f) * logarithm(u1));
  const Pair angle = turn(u2);
  return {radius * angle.low, radius * angle.high};
}

}  // namespace
