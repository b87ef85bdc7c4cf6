// A loop over XLA's own thread pool: its size follows the CPUs that the process may use, and no second pool competes.
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

// At most as many threads as BAGS_JAX_NUM_THREADS says, as the pool has, and as the calling thread has CPUs.
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

// What the threads of one loop share. A helper may start when all is over: it then only reads `next` and leaves.
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

// Calls body(item) for each item, by several threads, each taking the next one when it is free.
//
// The caller works too and waits only for items that a running thread has taken: it never depends on a helper that has
// not started, so that the pool cannot lock up however many of its threads are in here.
inline void ParallelFor(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> body) {
  if (count <= 0) return;
  const int64_t helpers = std::min(NumThreads(pool), count) - 1;
  auto loop = std::make_shared<Loop>(count, std::move(body));
  for (int64_t k = 0; k < helpers; ++k) pool.Schedule([loop] { loop->Run(); });
  loop->Run();
  loop->Wait();
}

}  // namespace bags
