// Scratch memory of a thread, handed out in pieces.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace {

// Hands out aligned pieces of one block of memory; with no memory it only counts.
struct Arena {
  char* base;
  size_t used;
  template <class T>
  T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

}  // namespace
