// A CPU in the words of CUDA: enough to run the kernels of bags_jax/cuda, the very source, for their values.
//
// Each thread of a block is a fiber with a stack of its own; all of them share one thread of the operating system and hand
// it on where they meet: at a barrier, a vote or a shuffle. Blocks run one after the other. A block whose threads do not
// all come to the same barriers is stuck, and says so.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define EMULATOR
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

using std::max;
using std::min;

struct alignas(16) float4 {
  float x, y, z, w;
};

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kStack = 64 * 1024;

struct Barrier {
  int size = 0, arrived = 0;
  uint64_t generation = 0;
  uint64_t shown[2][kMostThreads];  // what threads show each other, in turns: some may still be reading the other
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

struct Block {
  std::vector<Fiber> fibers{kMostThreads};
  ucontext_t scheduler;
  Barrier all, warps[kMostThreads / kWarp];
  int current = 0, num_threads = 0;
  bool moved = false;  // some barrier opened, or some thread ended, since the last round
  const std::function<void()>* kernel = nullptr;
};

inline Block block;

inline void hand_on() { swapcontext(&block.fibers[block.current].context, &block.scheduler); }

inline void wait(Barrier& barrier) {
  const uint64_t mine = barrier.generation;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    block.moved = true;
    return;
  }
  while (barrier.generation == mine) hand_on();
}

// Shows `value` to the other threads of a barrier that begin with `first`, and returns what they show.
inline const uint64_t* share(Barrier& barrier, int first, uint64_t value) {
  uint64_t* shown = barrier.shown[barrier.generation & 1];
  shown[block.current - first] = value;
  wait(barrier);
  return shown;
}

inline Barrier& warp() { return block.warps[block.current / kWarp]; }
inline const uint64_t* share_in_warp(uint64_t value) { return share(warp(), block.current / kWarp * kWarp, value); }

inline void enter() {
  (*block.kernel)();
  block.fibers[block.current].done = true;
  block.moved = true;
  hand_on();
}

inline void start(int num_threads) {
  block.num_threads = num_threads;
  block.all.size = num_threads;
  for (auto& w : block.warps) w.size = kWarp;
  for (int i = 0; i < num_threads; ++i) {
    Fiber& fiber = block.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

}  // namespace emulator

inline Dim3 blockIdx, gridDim;
inline struct {
  struct {
    operator unsigned() const { return emulator::block.current; }
  } x;
} threadIdx;

namespace emulator {

inline void run_block(int num_threads) {
  start(num_threads);
  for (int left = num_threads; left > 0;) {
    block.moved = false;
    left = 0;
    for (block.current = 0; block.current < num_threads; ++block.current) {
      Fiber& fiber = block.fibers[block.current];
      if (fiber.done) continue;
      swapcontext(&block.scheduler, &fiber.context);
      left += !fiber.done;
    }
    if (left && !block.moved) {
      std::fprintf(stderr, "emulator: %d threads wait for others that never come\n", left);
      std::abort();
    }
  }
}

inline void run_grid(Dim3 grid, int num_threads, const std::function<void()>& kernel) {
  block.kernel = &kernel;
  gridDim = grid;
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(num_threads);
}

template <typename To, typename From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block.all); }
inline void __syncwarp() { emulator::wait(emulator::warp()); }

inline int __syncthreads_or(int value) {
  const uint64_t* all = emulator::share(emulator::block.all, 0, value);
  return std::any_of(all, all + emulator::block.num_threads, [](uint64_t x) { return x != 0; });
}

inline unsigned __ballot_sync(unsigned, bool value) {
  const uint64_t* lanes = emulator::share_in_warp(value);
  unsigned ballot = 0;
  for (int i = 0; i < emulator::kWarp; ++i) ballot |= unsigned(lanes[i]) << i;
  return ballot;
}

inline int __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  uint64_t word = 0;
  static_assert(sizeof(T) <= sizeof(word));
  std::memcpy(&word, &value, sizeof(T));
  std::memcpy(&value, &emulator::share_in_warp(word)[source], sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
  return __shfl_sync(mask, value, (threadIdx.x % emulator::kWarp) ^ flip);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int step) {
  const int lane = threadIdx.x % emulator::kWarp;
  return __shfl_sync(mask, value, lane >= step ? lane - step : lane);
}

inline float atomicAdd(float* to, float value) {
  const float before = *to;
  *to += value;
  return before;
}

inline int __ffs(unsigned x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
