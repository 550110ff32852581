// Dot products of rows with rows, both along memory: the form for weights that few rollouts share (the components that
// each has chosen, the controllers) or that are too few for a register tile's columns (reward, end, `shared` logits).
//
// A dot product leaves its sum spread over the lanes of a vector. Such vectors are folded two by two until every lane
// holds a whole sum, so that adding up the lanes costs three operations a sum.
#pragma once

#include "job.h"
#include "precision.h"

namespace {

// Lanes 2i of the result belong to a, lanes 2i + 1 to b; each holds the sum of two lanes, i and i + width/2.
WM_INLINE F fold(F a, F b) {
  const Pair lanes = interleave(a, b);
  return lanes.low + lanes.high;
}
#if defined(__AVX512VNNI__)
WM_INLINE I fold(I a, I b) {
  const Pair lanes = interleave((F)a, (F)b);
  return (I)lanes.low + (I)lanes.high;
}
#endif

// N vectors (a power of two), kStride apart, folded into one: lane j of the result belongs to vector j mod N, and is
// the whole sum where N is the width. Of vectors that are themselves folds of M, lane j belongs to part j / N mod M of
// vector j mod N.
template <int N, int kStride = 1, class V>
WM_INLINE V folded(const V* v) {
  if constexpr (N == 1)
    return *v;
  else
    return fold(folded<N / 2, 2 * kStride>(v), folded<N / 2, 2 * kStride>(v + kStride));
}

// Pairs of weight rows lie vector by vector, the first row's beside the second's, behind a vector each with which their
// sums start. sum [R, P, 2] are the two rows of each pair times each x.
template <class T, int R, int P>
WM_INLINE void multiply_pairs(typename Dot<T>::Sum (&sum)[R * P * 2], const T* const (&x)[R],
                              const typename Dot<T>::Weight* const (&pair)[P], int64_t depth_vectors) {
  typedef Dot<T> D;
  constexpr int64_t kVector = kWidth * D::kTogether;
  each<P>([&](auto p) WM_FLAT {
    each<2>([&](auto i) WM_FLAT {
      const auto start = D::sums(pair[p] + i * kVector);
      each<R>([&](auto r) WM_FLAT { sum[(r * P + p) * 2 + i] = start; });
    });
  });
  for (int64_t v = 0; v < depth_vectors; ++v) {
    each<P>([&](auto p) WM_FLAT {
      const auto* at = pair[p] + 2 * (v + 1) * kVector;
      const typename D::Vector first = D::weights(at), second = D::weights(at + kVector);
      each<R>([&](auto r) WM_FLAT {
        const typename D::Vector row = D::row(x[r] + v * kVector);
        auto &to_first = sum[(r * P + p) * 2], &to_second = sum[(r * P + p) * 2 + 1];
        to_first = D::add(row, first, to_first);
        to_second = D::add(row, second, to_second);
      });
    });
  }
}

// A pair's vectors: the starts and the depth, of two rows.
inline int64_t pair_vectors_of(const wm::Pairs& m) { return 2 * (1 + m.depth_vectors); }

// What lies `vectors` vectors from where the first pair begins.
template <class T>
WM_INLINE const typename Dot<T>::Weight* pair_weights(const wm::Pairs& m, int64_t vectors) {
  return static_cast<const typename Dot<T>::Weight*>(m.weights) + vectors * kWidth * Dot<T>::kTogether;
}

// sum[j] += w[j] x over n elements, any number of them, of rows that nobody packed; w moves on behind them.
template <int N>
WM_INLINE void add_products(F (&sum)[N], const float* (&w)[N], const float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const F row = load(x + i);
    each<N>([&](auto j) WM_FLAT { sum[j] = fma(load(w[j] + i), row, sum[j]); });
  }
  if (i < n) {
    const F row = load_first(x + i, n - i);
    each<N>([&](auto j) WM_FLAT { sum[j] = fma(load_first(w[j] + i, n - i), row, sum[j]); });
  }
  each<N>([&](auto j) WM_FLAT { w[j] += n; });
}

}  // namespace
