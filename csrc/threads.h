// Running threads. How many is the caller's choice: wm_engine/machine.py counts the CPUs that a process may use.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

namespace wm {

// Runs `work(thread)` on `threads` threads, this one included, and returns when all are done. Threads live for one call,
// so a process that forked, or several callers at once, need no care. `interrupted` is asked on the calling thread about
// every 50 ms (through Stop::requested() while it works itself); once it says yes, Stop::requested() is true on all of
// them. An exception of any of them is thrown again here.
class Stop {
 public:
  explicit Stop(std::function<bool()> interrupted) : interrupted_(std::move(interrupted)) {}
  // Any thread may ask; only the calling thread passes `poll`.
  bool requested(bool poll);
  bool stopped() const { return stop_.load(std::memory_order_relaxed); }
  void request() { stop_.store(true, std::memory_order_relaxed); }

 private:
  std::function<bool()> interrupted_;
  std::atomic<bool> stop_{false};
  int64_t next_poll_ = 0;
};

void run_threads(int threads, Stop& stop, const std::function<void(int thread)>& work);

}  // namespace wm
