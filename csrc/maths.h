// Elementary functions on vectors of floats. A NaN comes out as a NaN from every one of them but the logarithm.
//
// The coefficients are our own weighted least-squares fits in float64, iterated towards the minimax error. The stated
// largest errors, in units in the last place, are checked by tests/test_native.py against float64 on every level.
//
// Functions of N vectors at once take every operation for all of them before the next one, so that a chain of dependent
// operations need not be waited for: GCC keeps the order of the source. (On a Zen 5 it made no difference: TUNING.md.)
#pragma once

#include "unroll.h"

namespace {

// e^x, clamped to [-87.3, 88.3]; 1.1 ulp.
template <int N>
WM_INLINE void exponentials(F (&x)[N]) {
  F n[N], p[N];
  each<N>([&](auto i) WM_FLAT { x[i] = not_below(at_most(x[i], set1(88.3f)), set1(-87.3f)); });
  each<N>([&](auto i) WM_FLAT { n[i] = nearest(x[i] * set1(1.44269504f)); });
  // ln 2 in two parts: the first has few enough bits that n times it is exact.
  each<N>([&](auto i) WM_FLAT { x[i] = fma(n[i], set1(-0.693359375f), x[i]); });
  each<N>([&](auto i) WM_FLAT { x[i] = fma(n[i], set1(2.12194440e-4f), x[i]); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(set1(1.381446475176018e-3f), x[i], set1(8.368780622215025e-3f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], x[i], set1(4.16683942591595e-2f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], x[i], set1(0.16666520105546268f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], x[i], set1(0.4999999341226097f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], x[i] * x[i], x[i]); });
  each<N>([&](auto i) WM_FLAT { x[i] = scale_by_power(p[i] + set1(1.0f), n[i]); });
}
WM_INLINE F exponential(F x) {
  F one[1] = {x};
  exponentials(one);
  return one[0];
}

// A whole number in [0, 2^23) as an integer.
inline U float_to_whole(F x) { return as_bits(x + set1(8388608.0f)) & set1(0x007fffffu); }

// ln x for normal x > 0; 1 ulp.
inline F logarithm(F x) {
  F e = exponent_of(x), m = mantissa_of(x);  // x = m 2^e, m in [1/2, 1)
  const M small = less(m, set1(0.70710678f));
  m = select(small, m + m, m);
  e = select(small, e - set1(1.0f), e);
  const F f = m - set1(1.0f);
  F p = fma(set1(0.06746601341324869f), f, set1(-0.1167564133241073f));
  p = fma(p, f, set1(0.11888174608599299f));
  p = fma(p, f, set1(-0.12405591412735206f));
  p = fma(p, f, set1(0.14219550906056655f));
  p = fma(p, f, set1(-0.16667995667270202f));
  p = fma(p, f, set1(0.20002118732330187f));
  p = fma(p, f, set1(-0.25000009603653195f));
  p = fma(p, f, set1(0.3333331260280066f));
  const F square = f * f;
  F y = p * f * square;
  y = fma(e, set1(-2.12194440e-4f), y);
  y = fma(set1(-0.5f), square, y);
  return fma(e, set1(0.693359375f), f + y);
}

// (cos, sin) of 2 pi t for t in [0, 1]: the quarter turn is taken off exactly, before anything is rounded; 1 ulp of
// 1.
inline Pair turn(F t) {
  const F quarters = t * set1(4.0f), n = nearest(quarters), r = quarters - n, square = r * r;
  F s = fma(set1(-0.004601668975982961f), square, set1(0.07968003764293119f));
  s = fma(s, square, set1(-0.6459634608465546f));
  s = fma(s, square, set1(1.5707963217276864f)) * r;
  F c = fma(set1(0.0009037665855411697f), square, set1(-0.02086016513291602f));
  c = fma(c, square, set1(0.2536692259688419f));
  c = fma(c, square, set1(-1.2337005425978222f));
  c = fma(c, square, set1(1.0f));
  // n is 0 .. 4: (c, s), (-s, c), (-c, -s), (s, -c), (c, s)
  const F one = set1(1.0f), none = set1(0.0f);
  const F odd = n - set1(2.0f) * nearest(n * set1(0.5f) - set1(0.25f));
  const M swap = less(set1(0.5f), odd);
  const F cosine = select(swap, none - s, c), sine = select(swap, c, s);
  const M flip = less(set1(1.5f), n * (set1(5.0f) - n) - set1(2.5f));  // n of 2 or 3 (4 gives 1.5)
  const F sign = select(flip, none - one, one);
  return {cosine * sign, sine * sign};
}

// tanh x as a ratio of polynomials x / q, |x| clamped where tanh is 1 in float32; 6 ulp.
template <int N>
WM_INLINE void hyperbolic_ratios(F (&x)[N], F (&q)[N]) {
  F s[N], p[N];
  each<N>([&](auto i) WM_FLAT { x[i] = not_below(at_most(x[i], set1(9.01f)), set1(-9.01f)); });
  each<N>([&](auto i) WM_FLAT { s[i] = x[i] * x[i]; });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(set1(1.3318635512636638e-8f), s[i], set1(2.058315848912591e-5f)); });
  each<N>([&](auto i) WM_FLAT { q[i] = fma(set1(7.761838107505735e-7f), s[i], set1(3.2830606356399293e-4f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], s[i], set1(3.4940148747722092e-3f)); });
  each<N>([&](auto i) WM_FLAT { q[i] = fma(q[i], s[i], set1(2.58709984915081e-2f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], s[i], set1(0.13379701442982797f)); });
  each<N>([&](auto i) WM_FLAT { q[i] = fma(q[i], s[i], set1(0.46713016696158616f)); });
  each<N>([&](auto i) WM_FLAT { p[i] = fma(p[i], s[i], set1(0.9999999790531402f)); });
  each<N>([&](auto i) WM_FLAT { q[i] = fma(q[i], s[i], set1(1.0f)); });
  each<N>([&](auto i) WM_FLAT { x[i] = p[i] * x[i]; });
}
// Never beyond 1.
WM_INLINE F hyperbolic_tangent(F x) {
  F p[1] = {x}, q[1];
  hyperbolic_ratios(p, q);
  return not_below(at_most(p[0] / q[0], set1(1.0f)), set1(-1.0f));
}

// 1 + e^-x: a sigmoid is 1 over it.
template <int N>
WM_INLINE void sigmoid_denominators(F (&x)[N]) {
  each<N>([&](auto i) WM_FLAT { x[i] = set1(0.0f) - x[i]; });
  exponentials(x);
  each<N>([&](auto i) WM_FLAT { x[i] = set1(1.0f) + x[i]; });
}
// 1 / (1 + e^-x); 2.5 ulp above -87.
WM_INLINE F sigmoid(F x) {
  F one[1] = {x};
  sigmoid_denominators(one);
  return set1(1.0f) / one[0];
}

}  // namespace
