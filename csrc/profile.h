// Where the time of dreams goes, phase by phase: for `wm-engine profile`, in builds with WM_PROFILE only.
#pragma once

#if defined(WM_PROFILE)

#include <cstdint>
#include <vector>

#include "job.h"

namespace wm {

// One stretch of one phase on one thread: `rows` rollouts, nanoseconds of the monotonic clock.
struct Lap {
  int thread;
  Phase phase;
  int64_t rows, began, ended;
};

// What the phases of all threads took together since the last take_laps(), and the first laps of every call.
struct Laps {
  int64_t nanoseconds[kPhases] = {};
  int64_t rows[kPhases] = {};
  std::vector<Lap> first;
};

// The laps of one thread of one call; adds them to the common ones when it goes.
class LapBook {
 public:
  explicit LapBook(int thread);
  LapBook(const LapBook&) = delete;
  LapBook& operator=(const LapBook&) = delete;
  ~LapBook();
  void lap(Phase phase, int64_t rows, int64_t began, int64_t ended);

 private:
  int thread_;
  Laps laps_;
};

Laps take_laps();

}  // namespace wm

#endif
