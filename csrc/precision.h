// The precisions a level multiplies in: what z, a and h are kept as, and the dot product of each kind of element.
//
// A Mode (Fp32, Bf16, ...) is one precision on one kind of processor, and what the phases are templates of. It says
//   Input, Hidden  what [z, a] and h are multiplied as: float, BFloat16 or uint8_t (an int8 shifted by 128)
//   kCopies        whether those are rounded copies (operands.h), not the state's own floats
//   kQuantised     whether h is whole numbers, each row with a scale of its own: what one of them is worth
//   kTiles         whether AMX multiplies them, in tiles of rows (amx_body.h)
// and Dot<T> says how many elements of a kind one lane of an instruction multiplies, and how it adds their products up.
#pragma once

#include "job.h"
#include "unroll.h"

namespace {

using wm::Element;

// An AMX tile is kTile rows of activations, and of weights kTile times the depth of one dot product; without AMX a row
// and a dot product are taken by themselves.
#if defined(WM_AMX)
constexpr bool kAmx = true;
constexpr int kTile = 16;
#else
constexpr bool kAmx = false;
constexpr int kTile = 1;
#endif
template <class Mode>
struct Amx;  // the matrix products of a Mode with kTiles (amx_body.h)

typedef uint16_t BFloat16;

inline float from_bf16(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}
// Round to nearest even; a NaN stays one.
inline BFloat16 to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<BFloat16>((bits >> 16) | 0x40u);
  return static_cast<BFloat16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct Fp32 {
  typedef float Input;
  typedef float Hidden;
  static constexpr bool kCopies = false, kQuantised = false, kTiles = false;
};
struct Bf16 {
  typedef BFloat16 Input;
  typedef BFloat16 Hidden;
  static constexpr bool kCopies = true, kQuantised = false, kTiles = kAmx;
};
// Where there is no dot product of bf16: everything is rounded to it, but multiplied as floats.
struct Bf16AsFloat {
  typedef float Input;
  typedef float Hidden;
  static constexpr bool kCopies = true, kQuantised = false, kTiles = false;
};
struct Int8 {
  typedef BFloat16 Input;
  typedef uint8_t Hidden;
  static constexpr bool kCopies = true, kQuantised = true, kTiles = kAmx;
};
// Where there is one of int8 but none of bf16, to which z and a are rounded.
struct Int8FloatInput {
  typedef float Input;
  typedef uint8_t Hidden;
  static constexpr bool kCopies = true, kQuantised = true, kTiles = false;
};
// Where there is neither: whole numbers of h, too, are multiplied as floats.
struct Int8AsFloat {
  typedef float Input;
  typedef float Hidden;
  static constexpr bool kCopies = true, kQuantised = true, kTiles = false;
};

// Calls body(a Mode), that in which the model is kept. Each is compiled only where the level can come to it.
template <class Body>
inline void with_mode(const wm::Model& m, const Body& body) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
  if (m.quantised) return body(Int8());
  if (m.hidden_element == Element::bf16) return body(Bf16());
#elif defined(__AVX512VNNI__)
  if (m.quantised) return body(Int8FloatInput());
  if (m.rounded) return body(Bf16AsFloat());
#else
  if (m.quantised) return body(Int8AsFloat());
  if (m.rounded) return body(Bf16AsFloat());
#endif
  body(Fp32());
}

template <class T>
struct Dot;

template <>
struct Dot<float> {
  typedef float Weight;
  typedef F Vector;  // of an element spread over the lanes, of a row's elements, and of weights
  typedef F Sum;
  static constexpr int64_t kTogether = 1;
  static WM_INLINE Vector spread(const float* x) { return set1(*x); }
  static WM_INLINE Vector row(const float* x) { return load(x); }
  static WM_INLINE Vector weights(const float* w) { return load(w); }
  static WM_INLINE Sum sums(const float* start) { return load(start); }
  static WM_INLINE Sum add(Vector x, Vector w, Sum sum) { return fma(x, w, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<BFloat16> {
  typedef BFloat16 Weight;
  typedef __m512i Vector;
  typedef F Sum;
  static constexpr int64_t kTogether = 2;
  static WM_INLINE Vector spread(const BFloat16* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static WM_INLINE Vector row(const BFloat16* x) { return _mm512_loadu_si512(x); }
  static WM_INLINE Vector weights(const BFloat16* w) { return _mm512_loadu_si512(w); }
  static WM_INLINE Sum sums(const BFloat16* start) { return _mm512_loadu_ps(start); }
  static WM_INLINE Sum add(Vector x, Vector w, Sum sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
};
#endif

#if defined(__AVX512VNNI__)
// Typed as 32-bit lanes throughout: through __m512i, which has 64-bit ones, GCC 12 copies every accumulator in every
// turn.
typedef int32_t I __attribute__((vector_size(64)));

template <>
struct Dot<uint8_t> {
  typedef int8_t Weight;
  typedef I Vector;
  typedef I Sum;
  static constexpr int64_t kTogether = 4;
  static WM_INLINE Vector spread(const uint8_t* x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, sizeof quad);
    return (I)_mm512_set1_epi32(quad);
  }
  static WM_INLINE Vector row(const uint8_t* x) { return (I)_mm512_loadu_si512(x); }
  static WM_INLINE Vector weights(const int8_t* w) { return (I)_mm512_loadu_si512(w); }
  static WM_INLINE Sum sums(const int8_t* start) { return (I)_mm512_loadu_si512(start); }
  static WM_INLINE Sum add(Vector x, Vector w, Sum sum) {
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
  }
};
#endif

WM_INLINE F to_float(F sum) { return sum; }
#if defined(__AVX512VNNI__)
WM_INLINE F to_float(I sum) { return _mm512_cvtepi32_ps((__m512i)sum); }
#endif

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
template <class T>
inline int64_t padded(int64_t n) {
  return round_up(n, Dot<T>::kTogether * (sizeof(T) < sizeof(float) ? kTile : 1));
}

}  // namespace
