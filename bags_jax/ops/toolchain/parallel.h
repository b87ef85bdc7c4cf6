// A parallel loop on XLA's own thread pool: its size follows the CPUs of the process, and no second pool competes.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>

#if defined(__linux__)
#include <sched.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace bags {

// Returns the smallest of BAGS_JAX_NUM_THREADS, the threads of the pool, and the CPUs of the calling thread.
inline int64_t NumThreads(const xla::ffi::ThreadPool& pool) {
  int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
#if defined(__linux__)
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) threads = std::min<int64_t>(threads, CPU_COUNT(&cpus));
#endif
  const char* wanted = std::getenv("BAGS_JAX_NUM_THREADS");
  if (wanted != nullptr && std::atol(wanted) > 0) threads = std::min<int64_t>(threads, std::atol(wanted));
  return std::max<int64_t>(threads, 1);
}

// State that the threads of one loop share. A helper that starts after the end of the loop only reads next_ and
// returns.
class Loop {
 public:
  Loop(int64_t count, std::function<void(int64_t)> body) : count_(count), body_(std::move(body)) {}

  void Run() {
    int64_t finished = 0;
    for (int64_t item; (item = next_.fetch_add(1)) < count_; ++finished) body_(item);
    if (finished == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    done_ += finished;
    if (done_ == count_) all_done_.notify_all();
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_ == count_; });
  }

 private:
  const int64_t count_;
  const std::function<void(int64_t)> body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
  int64_t done_ = 0;
};

// Calls body(item) for each item. Several threads each take the next item when they are free.
//
// The caller works too, and waits only for items that a running thread has taken. It never depends on a helper that has
// not started, so the pool cannot deadlock, no matter how many of its threads run loops.
inline void ParallelFor(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> body) {
  if (count <= 0) return;
  const int64_t helpers = std::min(NumThreads(pool), count) - 1;
  auto loop = std::make_shared<Loop>(count, std::move(body));
  for (int64_t k = 0; k < helpers; ++k) pool.Schedule([loop] { loop->Run(); });
  loop->Run();
  loop->Wait();
}

}  // namespace bags
