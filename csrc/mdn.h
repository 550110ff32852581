// Sampling the mixture density head (Bishop 1994; Ha & Schmidhuber 2018, section 2.2), with the numbers of the
// random-number contract. z' = mean + exp(log deviation) sqrt(temperature) n, for the component chosen by u.
#pragma once

#include "job.h"
#include "rng.h"

namespace {

struct Temperature {
  bool zero;
  float inverse;  // bounded, so that 0 * inverse is 0
  float root;
};

inline Temperature temperature_of(float tau) {
  const float largest_float = 3.40282347e+38f;
  return {tau == 0.0f, tau * largest_float > 1.0f ? 1.0f / tau : largest_float, __builtin_sqrtf(tau)};
}

// The log deviation's range, in training as in sampling.
constexpr float kLogStdLow = -7.0f, kLogStdHigh = 7.0f;

inline F clamped_log_std(F log_std) { return not_below(at_most(log_std, set1(kLogStdHigh)), set1(kLogStdLow)); }

inline F draw(F mean, F log_std, F normal, float root_temperature) {
  const F deviation = exponential(clamped_log_std(log_std));
  return fma(deviation * set1(root_temperature), normal, mean);
}

// The smallest k whose cumulated probability reaches u, else K-1; the first of the largest at temperature 0.
// `logits` is readable and `room` writable to whole vectors.
inline int64_t choose(const float* logits, int64_t mixtures, float u, const Temperature& temperature, float* room) {
  int64_t best = 0;
  for (int64_t k = 1; k < mixtures; ++k)
    if (logits[k] > logits[best]) best = k;
  if (temperature.zero) return best;
  for (int64_t k = 0; k < mixtures; k += kWidth)
    store(room + k, exponential((load(logits + k) - set1(logits[best])) * set1(temperature.inverse)));
  for (int64_t k = 1; k < mixtures; ++k) room[k] += room[k - 1];
  const float reach = u * room[mixtures - 1];
  for (int64_t k = 0; k < mixtures - 1; ++k)
    if (room[k] >= reach) return k;
  return mixtures - 1;
}

// As `choose` for a vector of dimensions, each with a choice of its own, as floats. `logits` holds K vectors, which are
// overwritten.
inline F choose_per_dim(float* logits, int64_t mixtures, F u, const Temperature& temperature) {
  F reach = load(logits);
  for (int64_t k = 1; k < mixtures; ++k) {
    const F x = load(logits + k * kWidth);
    reach = select(less(reach, x), x, reach);
  }
  if (!temperature.zero) {
    const F top = reach;
    F total = set1(0.0f);
    for (int64_t k = 0; k < mixtures; ++k) {
      total = total + exponential((load(logits + k * kWidth) - top) * set1(temperature.inverse));
      store(logits + k * kWidth, total);
    }
    reach = u * total;
  }
  F chosen = set1(static_cast<float>(mixtures - 1));
  for (int64_t k = mixtures - 2; k >= 0; --k)  // downwards, so that the smallest k that reaches it stays
    chosen = select(at_least(load(logits + k * kWidth), reach), set1(static_cast<float>(k)), chosen);
  return chosen;
}

// Of K vectors, `stride` floats apart, every lane's chosen one.
inline F pick(const float* vectors, int64_t stride, int64_t mixtures, F chosen) {
  F picked = load(vectors);
  for (int64_t k = 1; k < mixtures; ++k)
    picked = select(at_least(chosen, set1(static_cast<float>(k))), load(vectors + k * stride), picked);
  return picked;
}

}  // namespace
