// Lanes stepped from outside, over threads.
#include <algorithm>
#include <atomic>

#include "buffer.h"
#include "dream.h"
#include "threads.h"

namespace wm {
namespace {

// Rows of a tile, as a rollout has at most (dream.cpp), and the fewest lanes that a thread is started for.
constexpr int64_t kTileRows = 48, kLeastLanes = 64;

}  // namespace

void Engine::lanes(LaneTask task, const Plan& plan, const Lanes& lanes, int threads) const {
  const int64_t workers = std::clamp<int64_t>(lanes.count / kLeastLanes, 1, threads);
  const int64_t rounds = (lanes.count + workers * kTileRows - 1) / (workers * kTileRows);
  const int64_t rows = (lanes.count + workers * rounds - 1) / (workers * rounds);
  const Job job{model_, controller_, plan};
  const size_t bytes = level_.scratch_bytes(job, rows);
  std::atomic<int64_t> next{0};
  Stop stop(nullptr);
  run_threads(static_cast<int>(workers), stop, [&](int) {
    const Buffer scratch(bytes);
    for (;;) {
      const int64_t first = next.fetch_add(rows, std::memory_order_relaxed);
      if (first >= lanes.count) return;
      level_.lanes(task, job, lanes, scratch.data(), rows, first, std::min(first + rows, lanes.count));
    }
  });
}

}  // namespace wm
