#include <immintrin.h>

#include "peak_body.h"

int64_t wm::peak_avx512_bf16(int64_t rounds, float* sink) {
  const __m512 ones = _mm512_set1_ps(1e-3f);
  const __m512bh pairs = _mm512_cvtne2ps_pbh(ones, ones);
  return run_chains(
      rounds, sink, 64, [](int n) { return _mm512_set1_ps(static_cast<float>(n)); },
      [=](__m512 x) { return _mm512_dpbf16_ps(x, pairs, pairs); },
      [](__m512 x) { return _mm512_cvtss_f32(x); });
}
