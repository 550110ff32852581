// Scratch memory of a thread, handed out in pieces.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__  // as GCC says it
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

// Hands out aligned pieces of one block of memory; with no memory it only counts. Under AddressSanitizer a forbidden line
// stands behind each piece: the sanitizer knows the block alone.
struct Arena {
  char* base;
  size_t used;
  template <class T>
  T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
#if defined(__SANITIZE_ADDRESS__)
    if (base) ASAN_POISON_MEMORY_REGION(base + used, 64);
    used += 64;
#endif
    return p;
  }
  // Makes it at least so many bytes, all of which may be read from any piece.
  void reach(size_t bytes) {
    if (used < bytes) used = bytes;
#if defined(__SANITIZE_ADDRESS__)
    if (base) ASAN_UNPOISON_MEMORY_REGION(base, bytes);
#endif
  }
};

}  // namespace
