#include <immintrin.h>

#include "peak_body.h"

int64_t wm::peak_avx2_f32(int64_t rounds, float* sink) {
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1e-3f);
  return run_chains(
      rounds, sink, 16, [](int n) { return _mm256_set1_ps(static_cast<float>(n)); },
      [=](__m256 x) { return _mm256_fmadd_ps(x, a, b); },
      [](__m256 x) { return _mm256_cvtss_f32(x); });
}
