#include <immintrin.h>

#include "peak_body.h"

int64_t wm::peak_avx512_int8(int64_t rounds, float* sink) {
  const __m512i bytes = _mm512_set1_epi8(1);
  return run_chains(
      rounds, sink, 128, [](int n) { return _mm512_set1_epi32(n); },
      [=](__m512i x) { return _mm512_dpbusd_epi32(x, bytes, bytes); },
      [](__m512i x) { return static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(x))); });
}
