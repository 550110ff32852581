#include "mdn_ops.h"

#include <algorithm>
#include <atomic>

#include "buffer.h"
#include "threads.h"

namespace wm {
namespace {

constexpr int64_t kChunk = 64;          // rows that a thread takes at a time
constexpr int64_t kLeastWork = 1 << 14; // components of a thread's share: fewer cost less than to start a thread

}  // namespace

void run_heads(const Level& level, HeadTask task, const Heads& heads, int threads) {
  const int64_t shares = heads.rows * heads.latent * heads.mixtures / kLeastWork;
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, shares));
  std::atomic<int64_t> next{0};
  Stop stop(nullptr);
  run_threads(static_cast<int>(workers), stop, [&](int) {
    const Buffer scratch(level.heads_scratch(heads));
    for (;;) {
      const int64_t first = next.fetch_add(kChunk, std::memory_order_relaxed);
      if (first >= heads.rows) return;
      level.heads(task, heads, scratch.data(), first, std::min(first + kChunk, heads.rows));
    }
  });
}

}  // namespace wm
