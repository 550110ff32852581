// What the tests ask a level for beside dreams: its elementary functions (maths.h) and its random words (rng.h), so
// that each is checked by itself.
#pragma once

#include "job.h"
#include "rng.h"

namespace {

// y [n] = function(x [n]).
void map(wm::Function function, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t some = n - i < kWidth ? n - i : kWidth;
    const F v = load_first(x + i, some);
    F result = v;
    switch (function) {
      case wm::Function::exp:
        result = exponential(v);
        break;
      case wm::Function::log:
        result = logarithm(v);
        break;
      case wm::Function::tanh:
        result = hyperbolic_tangent(v);
        break;
      case wm::Function::sigmoid:
        result = sigmoid(v);
        break;
      case wm::Function::cos_turn:
        result = turn(v).low;
        break;
      case wm::Function::sin_turn:
        result = turn(v).high;
        break;
    }
    float out[kWidth];
    store(out, result);
    for (int64_t j = 0; j < some; ++j) y[i + j] = out[j];
  }
}

// Philox4x32-10: counters and words are [4, n], n a whole number of vectors.
void philox_words(const uint32_t* counters, uint32_t key0, uint32_t key1, uint32_t* words, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const uint32_t* c = counters + i;
    const Words w = philox(load(c), load(c + n), load(c + 2 * n), load(c + 3 * n), key0, key1);
    store_bits(words + i, w.w0);
    store_bits(words + n + i, w.w1);
    store_bits(words + 2 * n + i, w.w2);
    store_bits(words + 3 * n + i, w.w3);
  }
}

}  // namespace
