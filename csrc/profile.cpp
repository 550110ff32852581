#include "profile.h"

#if defined(WM_PROFILE)

#include <mutex>
#include <utility>

namespace wm {
namespace {

// Enough for a picture of some hundred steps; the totals count all of them.
constexpr size_t kFirst = 8192;

std::mutex mutex;
Laps common;

}  // namespace

LapBook::LapBook(int thread) : thread_(thread) { laps_.first.reserve(kFirst); }

void LapBook::lap(Phase phase, int64_t rows, int64_t began, int64_t ended) {
  const int index = static_cast<int>(phase);
  laps_.nanoseconds[index] += ended - began;
  laps_.rows[index] += rows;
  if (laps_.first.size() < kFirst) laps_.first.push_back({thread_, phase, rows, began, ended});
}

LapBook::~LapBook() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (int phase = 0; phase < kPhases; ++phase) {
    common.nanoseconds[phase] += laps_.nanoseconds[phase];
    common.rows[phase] += laps_.rows[phase];
  }
  common.first.insert(common.first.end(), laps_.first.begin(), laps_.first.end());
}

Laps take_laps() {
  const std::lock_guard<std::mutex> lock(mutex);
  return std::exchange(common, Laps{});
}

}  // namespace wm

#endif
