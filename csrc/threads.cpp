#include "threads.h"

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif

namespace wm {
namespace {

constexpr std::chrono::milliseconds kPoll(50);

int64_t milliseconds_now() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

// Whole processors of the cgroup's quota (version 2, then version 1), or 0 where there is none.
int cgroup_processors() {
  double quota = 0, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;  // "max 100000": no limit
    std::fclose(file);
  } else {
    const auto read = [](const char* path) {
      double value = 0;
      if (std::FILE* one = std::fopen(path, "r")) {
        if (std::fscanf(one, "%lf", &value) != 1) value = 0;
        std::fclose(one);
      }
      return value;
    };
    quota = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  }
  if (quota <= 0 || period <= 0) return 0;
  return quota < period ? 1 : static_cast<int>(quota / period + 0.5);
}

}  // namespace

int available_processors() {
  int processors = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) processors = CPU_COUNT(&set);
#endif
  const int limit = cgroup_processors();
  if (limit > 0 && limit < processors) processors = limit;
  return processors > 0 ? processors : 1;
}

bool Stop::requested(bool poll) {
  if (stopped()) return true;
  if (poll && interrupted_) {
    const int64_t now = milliseconds_now();
    if (now >= next_poll_) {
      next_poll_ = now + kPoll.count();
      if (interrupted_()) request();
    }
  }
  return stopped();
}

void run_threads(int threads, Stop& stop, const std::function<void(int thread)>& work) {
  std::mutex mutex;
  std::condition_variable finished;
  int running = threads - 1;
  std::exception_ptr error;
  const auto guarded = [&](int thread) {
    try {
      work(thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      stop.request();
    }
  };

  std::vector<std::thread> others;
  try {
    others.reserve(static_cast<size_t>(threads));
    for (int i = 1; i < threads; ++i)
      others.emplace_back([&, i] {
        guarded(i);
        const std::lock_guard<std::mutex> lock(mutex);
        --running;
        finished.notify_one();
      });
  } catch (...) {  // no more threads to be had: those that started do the work
    const std::lock_guard<std::mutex> lock(mutex);
    running -= threads - 1 - static_cast<int>(others.size());
  }
  guarded(0);
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (!finished.wait_for(lock, kPoll, [&] { return running == 0; })) {
      lock.unlock();
      stop.requested(true);
      lock.lock();
    }
  }
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace wm
