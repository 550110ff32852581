// The random-number contract on vectors: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3"), kWidth counters at a time, uniforms and normals. wm_engine/rng.py is the reference.
#pragma once

#include "maths.h"

namespace {

inline void store_bits(uint32_t* p, U v) {
  const F bits = as_float(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}

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

// The uniforms of a vector of blocks: words 0 and 2 of the blocks in turn in `first` [2 width], words 1 and 3 in
// `second`.
inline void uniforms(U block, U step, U episode, U candidate, uint32_t k0, uint32_t k1, float* first, float* second) {
  const Words w = philox(block, step, episode, candidate, k0, k1);
  const Pair even = interleave(unit(w.w0), unit(w.w2)), odd = interleave(unit(w.w1), unit(w.w3));
  store(first, even.low);
  store(first + kWidth, even.high);
  store(second, odd.low);
  store(second + kWidth, odd.high);
}

// The normals of `latent` dimensions, whole vectors of them, from the uniforms of blocks 0, 1, ...
inline void step_normals(const float* first, const float* second, int64_t latent, float* z) {
  for (int64_t i = 0; 2 * i < latent; i += kWidth) {
    const Pair n = box_muller(load(first + i), load(second + i));
    const Pair dims = interleave(n.low, n.high);
    store(z + 2 * i, dims.low);
    if (2 * i + kWidth < latent) store(z + 2 * i + kWidth, dims.high);
  }
}

// The uniforms that choose for the block-th vector of dimensions, where block `choice_at` of the step's list is the
// choice's first: dimension d takes word d mod 4, so the interleaved halves go back in order.
inline F choice_uniforms(const float* first, const float* second, int64_t choice_at, int64_t block) {
  const int64_t at = 2 * choice_at + block / 2 * kWidth;
  const Pair u = interleave(load(first + at), load(second + at));
  return block % 2 ? u.high : u.low;
}

}  // namespace
