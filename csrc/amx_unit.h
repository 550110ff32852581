// The tile unit of AMX: eight tiles of 16 rows by 64 bytes, and products of two of them that are added to a third (Intel,
// Architecture Instruction Set Extensions Programming Reference, chapter on AMX).
//
// A product multiplies a tile of activations (a row's elements side by side) with one of packed weights (a row holds one
// step of the depth: two bf16 or four int8 of each of 16 columns), which is how job.h packs them anyway.
//
// With WM_AMX_EMULATED plain C++ stands for the instructions, to test what is around them on processors without them.
#pragma once

#include <stdint.h>

#include "unroll.h"

namespace {

constexpr int kAmxRows = 16;   // of a tile: of activations the rollouts, of weights the instructions' depths
constexpr int kAmxBytes = 64;  // of a row

#if !defined(WM_AMX_EMULATED)

// The unit is set up where one of these begins, and let go of where it ends; the tiles' numbers are those of registers.
class AmxUnit {
 public:
  AmxUnit() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = kAmxBytes;
      config.rows[tile] = kAmxRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~AmxUnit() { asm volatile("tilerelease" ::: "memory"); }
  AmxUnit(const AmxUnit&) = delete;
  AmxUnit& operator=(const AmxUnit&) = delete;

  // Not the compiler's intrinsics: GCC's do not say which memory they read and write, and take a tile's number as a
  // literal alone, not as a template's argument.
  template <int T>
  WM_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  WM_INLINE void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  // Tile C of float32 += tile A of bf16 times tile B of bf16.
  template <int C, int A, int B>
  WM_INLINE void add_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  // Tile C of int32 += tile A of uint8 times tile B of int8.
  template <int C, int A, int B>
  WM_INLINE void add_int8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#else

class AmxUnit {
 public:
  template <int T>
  void load(const void* from, int64_t stride) {
    for (int row = 0; row < kAmxRows; ++row)
      __builtin_memcpy(tile_[T][row], static_cast<const char*>(from) + row * stride, kAmxBytes);
  }
  template <int T>
  void store(void* to, int64_t stride) {
    for (int row = 0; row < kAmxRows; ++row)
      __builtin_memcpy(static_cast<char*>(to) + row * stride, tile_[T][row], kAmxBytes);
  }
  // Even and odd elements are summed apart, from 0, in fused multiply-adds; denormal numbers are 0, read or made.
  template <int C, int A, int B>
  void add_bf16() {
    for (int m = 0; m < kAmxRows; ++m)
      for (int n = 0; n < kAmxRows; ++n) {
        float sums[2] = {0.0f, 0.0f};
        for (int k = 0; k < kAmxRows; ++k)
          for (int i = 0; i < 2; ++i)
            sums[i] = normal(__builtin_fmaf(half(A, m, 2 * k + i), half(B, k, 2 * n + i), sums[i]));
        float sum;
        __builtin_memcpy(&sum, tile_[C][m] + 4 * n, sizeof sum);
        sum = normal(normal(sum) + normal(sums[0] + sums[1]));
        __builtin_memcpy(tile_[C][m] + 4 * n, &sum, sizeof sum);
      }
  }
  template <int C, int A, int B>
  void add_int8() {
    for (int m = 0; m < kAmxRows; ++m)
      for (int n = 0; n < kAmxRows; ++n) {
        uint32_t sum;  // wraps around, as the instruction does
        __builtin_memcpy(&sum, tile_[C][m] + 4 * n, sizeof sum);
        for (int k = 0; k < kAmxRows; ++k)
          for (int i = 0; i < 4; ++i)
            sum += static_cast<uint32_t>(static_cast<int>(tile_[A][m][4 * k + i]) *
                                         static_cast<int8_t>(tile_[B][k][4 * n + i]));
        __builtin_memcpy(tile_[C][m] + 4 * n, &sum, sizeof sum);
      }
  }

 private:
  static float normal(float x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x; }
  float half(int tile, int row, int at) const {
    uint16_t bits;
    __builtin_memcpy(&bits, tile_[tile][row] + 2 * at, sizeof bits);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, sizeof x);
    return normal(x);
  }

  uint8_t tile_[8][kAmxRows][kAmxBytes] = {};
};

#endif

}  // namespace
