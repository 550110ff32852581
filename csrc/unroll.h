// Loops over a known count, unrolled before the compiler looks at arrays, so that those indexed by the counts live in
// registers. `#pragma GCC unroll` comes too late for that: GCC 12 then stores every accumulator of a matrix product in
// every turn of its loop.
#pragma once

#define WM_INLINE inline __attribute__((always_inline))
#define WM_FLAT __attribute__((always_inline))
#define WM_APART __attribute__((noinline))

namespace {

template <int N>
struct Count {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

// body(Count<0>()), ..., body(Count<N-1>()).
template <int N, class Body>
WM_INLINE void each(const Body& body) {
  if constexpr (N > 0) {
    each<N - 1>(body);
    body(Count<N - 1>());
  }
}

}  // namespace
