#include <immintrin.h>

#include "peak_body.h"

int64_t wm::peak_avx512_f32(int64_t rounds, float* sink) {
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1e-3f);
  return run_chains(
      rounds, sink, 32, [](int n) { return _mm512_set1_ps(static_cast<float>(n)); },
      [=](__m512 x) { return _mm512_fmadd_ps(x, a, b); },
      [](__m512 x) { return _mm512_cvtss_f32(x); });
}
