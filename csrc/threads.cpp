#include "threads.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace wm {
namespace {

constexpr std::chrono::milliseconds kPoll(50);

int64_t milliseconds_now() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

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
