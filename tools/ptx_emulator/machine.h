// A GPU on a CPU: runs blocks of threads, one block after the other, and checks which memory they use.
//
// Each thread of a block is a fiber with its own stack. All fibers share one thread of the operating system and switch
// at barriers, votes and shuffles.
//
// Faults: threads that wait at a barrier which other threads never reach; global memory outside all buffers; shared
// memory that is read before this block has written it; and races: two threads use one word of shared memory, one of
// them writes, and no barrier is between them (votes and shuffles are no barriers).
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace emulator {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kMostShared = 48 * 1024;  // bytes
constexpr size_t kStack = 64 * 1024;

struct Kernel {
  std::string_view name;
  void (*run)();
  size_t parameter_bytes, shared_bytes;
  int most_threads;
};

struct Size {
  uint32_t x = 1, y = 1, z = 1;
};

struct Range {
  uint64_t begin, end;
};

struct Barrier {
  int size = 0, arrived = 0;
  uint64_t generation = 0;
  uint32_t shown[2][kMostThreads];  // exchanged values; two copies, some threads may still read the last one
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  uint32_t synced = 0;  // barriers of its warp so far; they order the memory accesses of its lanes
};

// Access of a thread to a word of shared memory: number of barriers of the block, and of its warp, before the access.
struct Use {
  int thread = -1;
  uint64_t epoch = 0;
  uint32_t synced = 0;
};

struct Word {
  bool written = false;
  Use write, reads[2];  // last reads of two different threads
};

struct Block {
  const Kernel* kernel = nullptr;
  Size grid, size, index;
  std::vector<Range> buffers;   // memory that a kernel may use
  std::vector<char> parameters;
  std::vector<Fiber> fibers{kMostThreads};
  ucontext_t scheduler;
  Barrier all, warps[kMostThreads / kWarp];
  int current = 0;
  std::string fault;   // message of a thread that failed
  bool moved = false;  // since the last round a barrier opened or a thread ended
  alignas(16) char shared[kMostShared];
  Word words[kMostShared / 4];
};

inline Block block;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const std::string& what) {
  const auto& [x, y, z] = block.index;
  throw Fault(std::string(block.kernel->name) + ", block (" + std::to_string(x) + ", " + std::to_string(y) +
              "), thread " + std::to_string(block.current) + ": " + what);
}

inline std::string hex(uint64_t number) {
  char text[20];
  std::snprintf(text, sizeof(text), "0x%lx", static_cast<unsigned long>(number));
  return text;
}

inline Fiber& fiber() { return block.fibers[block.current]; }
inline void yield() { swapcontext(&fiber().context, &block.scheduler); }

inline void wait(Barrier& barrier) {
  const uint64_t mine = barrier.generation;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    block.moved = true;
    return;
  }
  while (barrier.generation == mine) yield();
}

// Exchanges values at a barrier whose threads begin with `first`. Returns the values of all its threads.
inline const uint32_t* exchange(Barrier& barrier, int first, uint32_t value) {
  uint32_t* shown = barrier.shown[barrier.generation & 1];
  shown[block.current - first] = value;
  wait(barrier);
  return shown;
}

inline Barrier& warp() { return block.warps[block.current / kWarp]; }
inline const uint32_t* exchange_in_warp(uint32_t value) {
  return exchange(warp(), block.current / kWarp * kWarp, value);
}

inline const uint32_t* exchange_in_block(uint32_t value) { return exchange(block.all, 0, value); }
inline void sync_block() { wait(block.all); }
inline void sync_warp() {
  wait(warp());
  ++fiber().synced;
}

// Returns whether an access is ordered before the accesses of the current thread.
inline bool is_ordered(const Use& use) {
  if (use.thread < 0 || use.thread == block.current || use.epoch < block.all.generation) return true;
  return use.thread / kWarp == block.current / kWarp && use.synced < fiber().synced;
}

[[noreturn]] inline void race(uint64_t word, const Use& use) {
  fail("race for shared memory at " + hex(4 * word) + " with thread " + std::to_string(use.thread));
}

inline char* shared(uint64_t address, size_t size, bool writes) {
  if (address + size > block.kernel->shared_bytes) fail("shared memory at " + hex(address) + ", beyond its end");
  for (uint64_t i = address / 4; i <= (address + size - 1) / 4; ++i) {
    Word& word = block.words[i];
    const Use now{block.current, block.all.generation, fiber().synced};
    if (!writes && !word.written) fail("shared memory at " + hex(4 * i) + " is read before it is written");
    if (!is_ordered(word.write)) race(i, word.write);
    if (writes) {
      for (const Use& read : word.reads)
        if (!is_ordered(read)) race(i, read);
      word.written = true;
      word.write = now;
    } else {
      if (word.reads[0].thread != now.thread) word.reads[1] = word.reads[0];
      word.reads[0] = now;
    }
  }
  return block.shared + address;
}

inline char* global(uint64_t address, size_t size) {
  for (const Range& buffer : block.buffers)
    if (buffer.begin <= address && address + size <= buffer.end)
      return reinterpret_cast<char*>(address);
  fail("global memory at " + hex(address) + ", in no buffer");
}

inline void enter() {
  try {
    block.kernel->run();
  } catch (const Fault& fault) {  // an exception must not leave its fiber
    block.fault = fault.what();
  }
  fiber().done = true;
  block.moved = true;
  yield();
}

inline void start(int num_threads) {
  block.fault.clear();
  block.all.size = num_threads;
  block.all.arrived = 0;
  for (auto& w : block.warps) w.size = kWarp, w.arrived = 0;
  for (size_t i = 0; i < (block.kernel->shared_bytes + 3) / 4; ++i) block.words[i] = Word();
  for (int i = 0; i < num_threads; ++i) {
    Fiber& fiber = block.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.done = false;
    fiber.synced = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
}

inline void run_block(int num_threads) {
  start(num_threads);
  for (int left = num_threads; left > 0;) {
    block.moved = false;
    left = 0;
    for (block.current = 0; block.current < num_threads; ++block.current) {
      if (fiber().done) continue;
      swapcontext(&block.scheduler, &fiber().context);
      if (!block.fault.empty()) throw Fault(block.fault);
      left += !fiber().done;
    }
    if (left && !block.moved) {
      block.current = 0;
      fail(std::to_string(left) + " threads wait at a barrier for threads that never come");
    }
  }
}

inline void run_grid(const Kernel& kernel, Size grid, int num_threads) {
  block.kernel = &kernel;
  block.grid = grid;
  block.size = {uint32_t(num_threads), 1, 1};
  if (num_threads > kernel.most_threads) fail(std::to_string(num_threads) + " threads, more than it is compiled for");
  for (block.index.y = 0; block.index.y < grid.y; ++block.index.y)
    for (block.index.x = 0; block.index.x < grid.x; ++block.index.x) run_block(num_threads);
}

// Registers a kernel. A launch names it by its whole text.
bool add(const Kernel& kernel, std::string_view text);

}  // namespace emulator
