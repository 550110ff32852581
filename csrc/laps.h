// Times the phases of a tile's step, in builds with WM_PROFILE; nothing elsewhere.
#pragma once

#if defined(WM_PROFILE)
#include <time.h>
#endif

#include "job.h"

namespace {

using wm::Hooks;

class Stopwatch {
 public:
#if defined(WM_PROFILE)
  explicit Stopwatch(const Hooks& hooks) : hooks_(hooks), began_(nanoseconds()) {}
  // Books the time since the last lap.
  void lap(wm::Phase phase, int64_t rows) {
    const int64_t now = nanoseconds();
    hooks_.lap(hooks_.context, phase, rows, began_, now);
    began_ = now;
  }

 private:
  static int64_t nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
  }
  const Hooks& hooks_;
  int64_t began_;
#else
  explicit Stopwatch(const Hooks&) {}
  void lap(wm::Phase, int64_t) {}
#endif
};

}  // namespace
