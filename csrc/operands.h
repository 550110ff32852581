// z, a and h as they are multiplied: rounded to bf16, or to int8 with a scale for every row.
//
//   in   a row's state [z, a, ..., h], float32
//   out  the row's operands: inputs [Z + A], operand(when) [H], and for int8 scales(when)
//
// Where a precision multiplies the state itself (fp32) there is nothing to do.
#pragma once

#include "tile.h"

namespace {

inline void round_row(const float* x, BFloat16* y, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  for (; i + kWidth <= n; i += kWidth) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
    __builtin_memcpy(y + i, &rounded, sizeof rounded);
  }
#endif
  for (; i < n; ++i) y[i] = to_bf16(x[i]);
}
inline void round_row(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = from_bf16(to_bf16(x[i]));
}

inline void quantise_row(const float* x, float inverse, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) store(y + i, nearest(load(x + i) * set1(inverse)));
}
#if defined(__AVX512VNNI__)
inline void quantise_row(const float* x, float inverse, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
    __builtin_memcpy(y + i, &bytes, sizeof bytes);
  }
}
#endif

template <class Mode>
inline void keep_input(Tile<Mode>& tile, int64_t row) {
  if constexpr (Mode::kCopies) {
    typedef typename Mode::Input Input;
    Input* in = tile.inputs + row * tile.input_row;
    const int64_t n = tile.model.latent + tile.model.action;
    round_row(tile.state(kNow, row), in, n);
    for (int64_t i = n; i < padded<Input>(n); ++i) in[i] = 0;
  }
}

// A row of h that is not finite is marked here: among int8 it could not be told from others.
template <class Mode>
inline void keep_hidden(Tile<Mode>& tile, When when, int64_t row) {
  if constexpr (Mode::kCopies) {
    const float* h = tile.hidden(when, row);
    typename Mode::Hidden* out = tile.operand(when, row);
    const int64_t n = tile.layout.cell_row;
    if constexpr (Mode::kQuantised) {
      F top = set1(0.0f), nan = set1(0.0f);
      for (int64_t i = 0; i < n; i += kWidth) {
        const F x = load(h + i);
        top = not_below(absolute(x), top);
        nan = fma(x, set1(0.0f), nan);
      }
      const float most = largest(top), check = sum(nan);
      // A row of zeros has any scale.
      const float scale = most > 1e-30f && check == 0.0f ? most / 127.0f : 1.0f;
      if (check != 0.0f) tile.failed[row] = true;
      tile.scales(when)[row] = scale;
      quantise_row(h, 1.0f / scale, out, n);
    } else {
      round_row(h, out, n);
    }
  }
}

}  // namespace
