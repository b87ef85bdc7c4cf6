// Lists the intersections of tiles and Gaussians by the rules of tiles.py, for all cameras of a batch at once.
//
//   count_tiles   counts the tiles of each Gaussian; keys that sort Gaussians front to back    (then XLA sorts, once)
//   sum_blocks    counts the intersections of each block of Gaussians, in depth order
//   scan_blocks   finds the first slot of each block
//   expand_pairs  writes the intersections, in depth order, with their tiles as keys           (then XLA sorts, stably)
//   find_ranges   finds the first intersection of each tile
//   sum_slots     sums the gradients of the slots of each Gaussian in a fixed order           (deterministic mode only)
//
// Camera c owns the slots [c * capacity, (c + 1) * capacity) and the keys [c * (tiles + 1), ...). The last of its keys
// marks unused slots. So a camera keeps its slots when the intersections of all cameras are sorted at once.
#include "device.cuh"

constexpr int BLOCK = 256;                // threads and Gaussians of a block
constexpr int SCAN_BLOCK = 1024;          // threads that scan the blocks of one camera
constexpr int LONG_LIST = 4 * WARP;       // a whole warp writes a Gaussian with more tiles
constexpr float SLACK_PX = 1e-3f;         // widens intervals, so that rounding never loses a pixel
constexpr int MAX_COUNT = 0x7fffffff;     // counts saturate here
constexpr unsigned LAST = 0xffffffffu;    // depth key of a Gaussian that touches no tile

struct Sizes {
  int gaussians;      // of one camera
  int capacity;       // slots of one camera
  int columns, rows;  // tiles
  int cameras;
};

__device__ __forceinline__ Sizes read_sizes(const int* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

struct Ellipse {
  float x, y;        // centre, px
  float xx, xy, yy;  // covariance, px^2
  float rx, ry;      // half extents, px; 0 = culled
};

struct Interval {
  int first, count;
};

__device__ __forceinline__ Ellipse read_ellipse(const float* means, const float* covs, const float* radii, int index) {
  const size_t i = index;
  Ellipse e{means[2 * i], means[2 * i + 1], covs[3 * i], covs[3 * i + 1], covs[3 * i + 2], radii[2 * i],
            radii[2 * i + 1]};
  if (!(e.ry > 0.0f)) return {0, 0, 1, 0, 1, 0, 0};
  e.rx += SLACK_PX;
  e.ry += SLACK_PX;
  return e;
}

// Returns the tiles with a pixel centre between low and high. Centres are half a pixel inside the border of a tile.
__device__ __forceinline__ Interval tiles_between(float low, float high, int num_tiles) {
  const float first = clamp(ceilf((low + 0.5f) / TILE) - 1.0f, 0.0f, float(num_tiles));
  const float stop = clamp(floorf((high - 0.5f) / TILE) + 1.0f, 0.0f, float(num_tiles));
  return {int(first), max(int(stop) - int(first), 0)};
}

__device__ __forceinline__ Interval touched_rows(const Ellipse& e, int rows) {
  if (!(e.ry > 0.0f)) return {0, 0};
  return tiles_between(e.y - e.ry, e.y + e.ry, rows);
}

// Returns x of the right (side = 1) or left (side = -1) border of an ellipse at y = centre + dy.
__device__ __forceinline__ float border(const Ellipse& e, float dy, float side) {
  const float scale = sqrtf(fmaxf(e.xx * e.yy - e.xy * e.xy, 0.0f)) / e.yy;
  return e.x + dy * e.xy / e.yy + side * scale * sqrtf(fmaxf(e.ry * e.ry - dy * dy, 0.0f));
}

// Returns the tiles of one row that an ellipse touches. Its right border is a concave function of y. The maximum over
// the row is at the y of the rightmost point, clamped to the row. The left border likewise.
__device__ __forceinline__ Interval touched_columns(const Ellipse& e, int row, int columns) {
  const float top = clamp(row * TILE + 0.5f - SLACK_PX - e.y, -e.ry, e.ry);
  const float bottom = clamp((row + 1) * TILE - 0.5f + SLACK_PX - e.y, -e.ry, e.ry);
  const float tip = e.rx * e.xy / e.xx;
  const float right = border(e, clamp(tip, top, bottom), 1.0f) + SLACK_PX;
  const float left = border(e, clamp(-tip, top, bottom), -1.0f) - SLACK_PX;
  return tiles_between(left, right, columns);
}

// Returns the sum of the values of the lanes before this one.
template <typename T>
__device__ __forceinline__ T sum_before(T value, int lane) {
  T sum = value;
#pragma unroll
  for (int step = 1; step < WARP; step *= 2) {
    const T other = __shfl_up_sync(ALL_LANES, sum, step);
    if (lane >= step) sum += other;
  }
  return sum - value;
}

template <typename T>
struct Scanned {
  T before, total;
};

// Returns the sums of the values of the threads before this one, and of all threads of the block.
template <int THREADS, typename T>
__device__ __forceinline__ Scanned<T> scan_block(T value) {
  __shared__ T of_warp[THREADS / WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  T before = sum_before(value, lane), total = 0;
  if (lane == WARP - 1) of_warp[warp] = before + value;
  __syncthreads();
  for (int w = 0; w < THREADS / WARP; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  __syncthreads();
  return {before, total};
}

KERNEL __launch_bounds__(BLOCK) count_tiles(
    const int* sizes, const float* means, const float* covs, const float* radii, const float* depths, int* counts,
    unsigned* depth_keys) {
  const Sizes s = read_sizes(sizes);
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  if (i >= s.cameras * s.gaussians) return;
  const Ellipse e = read_ellipse(means, covs, radii, i);
  const Interval rows = touched_rows(e, s.rows);
  int count = 0;
  for (int row = rows.first; row < rows.first + rows.count; ++row) count += touched_columns(e, row, s.columns).count;
  counts[i] = count;
  depth_keys[i] = count > 0 ? __float_as_uint(depths[i]) : LAST;  // positive floats are ordered like their bits
}

// Grid of the kernels that use it: x = block of Gaussians in depth order, y = camera.
__device__ __forceinline__ int in_order(const Sizes& s, const int* order) {
  const int place = blockIdx.x * BLOCK + threadIdx.x;
  return place < s.gaussians ? order[blockIdx.y * s.gaussians + place] : -1;
}

// A block has fewer than MAX_COUNT intersections: binning.py refuses larger images.
KERNEL __launch_bounds__(BLOCK) sum_blocks(const int* sizes, const int* order, const int* counts, int* sums) {
  const int i = in_order(read_sizes(sizes), order);
  const int total = scan_block<BLOCK>(i < 0 ? 0 : counts[i]).total;
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// Grid: one block per camera. Results saturate at MAX_COUNT instead of overflowing. The capacity is smaller, so
// saturation always shows as dropped intersections.
KERNEL __launch_bounds__(SCAN_BLOCK) scan_blocks(const int* sizes, const int* sums, int* begins, int* totals) {
  const int blocks = (sizes[0] + BLOCK - 1) / BLOCK, first = blockIdx.x * blocks;
  long long carried = 0;
  for (int base = 0; base < blocks; base += SCAN_BLOCK) {
    const int b = base + threadIdx.x;
    const auto scanned = scan_block<SCAN_BLOCK, long long>(b < blocks ? sums[first + b] : 0);
    const long long begin = carried + scanned.before;
    if (b < blocks) begins[first + b] = int(begin < MAX_COUNT ? begin : MAX_COUNT);
    carried += scanned.total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = int(carried < MAX_COUNT ? carried : MAX_COUNT);
}

// Slots of one camera. Intersections beyond the capacity are dropped.
template <typename Key>
struct Slots {
  Key* keys;
  int* ids;
  int capacity;

  __device__ __forceinline__ void write(int slot, int key, int id) const {
    if (slot >= capacity) return;
    keys[slot] = Key(key);
    ids[slot] = id;
  }

  // Writes the intersections of one row of tiles to slots before `stop`. Returns the slot behind them.
  __device__ __forceinline__ int write_row(Interval columns, int first_key, int id, int slot, int stop) const {
    for (int k = 0; k < columns.count && slot < stop; ++k, ++slot) write(slot, first_key + columns.first + k, id);
    return slot;
  }
};

// One thread writes a Gaussian with few tiles. Neighbouring threads write neighbouring slots.
template <typename Key>
__device__ __forceinline__ void expand_alone(
    const Slots<Key>& slots, const Ellipse& e, const Sizes& s, int key, int id, int begin, int stop) {
  const Interval rows = touched_rows(e, s.rows);
  for (int row = rows.first; row < rows.first + rows.count; ++row)
    begin = slots.write_row(touched_columns(e, row, s.columns), key + row * s.columns, id, begin, stop);
}

// A warp writes a Gaussian with many tiles. Each lane takes every 32nd row.
template <typename Key>
__device__ __forceinline__ void expand_together(
    const Slots<Key>& slots, const Ellipse& e, const Sizes& s, int key, int id, int begin, int stop, int lane) {
  const Interval rows = touched_rows(e, s.rows);
  for (int base = 0; base < rows.count; base += WARP) {
    const int row = rows.first + base + lane;
    const Interval columns = base + lane < rows.count ? touched_columns(e, row, s.columns) : Interval{0, 0};
    const int before = sum_before(columns.count, lane);
    slots.write_row(columns, key + row * s.columns, id, min(begin, stop) + before, stop);
    begin += __shfl_sync(ALL_LANES, before + columns.count, WARP - 1);
  }
}

template <typename Key>
__device__ __forceinline__ void expand(
    const int* sizes, const int* order, const int* counts, const int* block_begins, const int* totals,
    const float* means, const float* covs, const float* radii, Key* keys, int* ids, int* begins) {
  const Sizes s = read_sizes(sizes);
  const int camera = blockIdx.y, lane = threadIdx.x % WARP;
  const int i = in_order(s, order), count = i < 0 ? 0 : counts[i];
  const size_t arena = size_t(camera) * s.capacity;
  const Slots<Key> slots{keys + arena, ids + arena, s.capacity};
  const int first_key = camera * (s.columns * s.rows + 1), owner = camera * s.gaussians;
  const int block_begin = block_begins[camera * gridDim.x + blockIdx.x];
  const int offset = scan_block<BLOCK>(count).before;
  const int begin = offset < MAX_COUNT - block_begin ? block_begin + offset : MAX_COUNT;
  if (i >= 0) begins[i] = begin;

  const bool seen = count > 0 && begin < s.capacity;
  const bool is_long = seen && count > LONG_LIST;
  if (seen && !is_long) {
    expand_alone(slots, read_ellipse(means, covs, radii, i), s, first_key, i - owner, begin, begin + count);
  }
  for (unsigned todo = __ballot_sync(ALL_LANES, is_long); todo; todo &= todo - 1) {
    const int source = __ffs(todo) - 1;
    const int which = __shfl_sync(ALL_LANES, i, source), from = __shfl_sync(ALL_LANES, begin, source);
    const int stop = from + min(__shfl_sync(ALL_LANES, count, source), s.capacity - from);
    expand_together(slots, read_ellipse(means, covs, radii, which), s, first_key, which - owner, from, stop, lane);
  }
  const int step = gridDim.x * BLOCK;
  for (int slot = min(totals[camera], s.capacity) + blockIdx.x * BLOCK + threadIdx.x; slot < s.capacity; slot += step)
    slots.write(slot, first_key + s.columns * s.rows, 0);
}

KERNEL __launch_bounds__(BLOCK) expand_pairs_u16(
    const int* sizes, const int* order, const int* counts, const int* block_begins, const int* totals,
    const float* means, const float* covs, const float* radii, unsigned short* keys, int* ids, int* begins) {
  expand(sizes, order, counts, block_begins, totals, means, covs, radii, keys, ids, begins);
}

KERNEL __launch_bounds__(BLOCK) expand_pairs_u32(
    const int* sizes, const int* order, const int* counts, const int* block_begins, const int* totals,
    const float* means, const float* covs, const float* radii, unsigned* keys, int* ids, int* begins) {
  expand(sizes, order, counts, block_begins, totals, means, covs, radii, keys, ids, begins);
}

// Finds for each tile the first slot of its camera with at least the key of the tile, by bisection, and the end of the
// last tile.
template <typename Key>
__device__ __forceinline__ void find(const int* sizes, const Key* keys, int* starts) {
  const Sizes s = read_sizes(sizes);
  const int bounds = s.columns * s.rows + 1;
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  if (i >= s.cameras * bounds) return;
  const Key* own = keys + size_t(i / bounds) * s.capacity;
  int low = 0, high = s.capacity;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (own[middle] < Key(i)) low = middle + 1;
    else high = middle;
  }
  starts[i] = low;
}

KERNEL __launch_bounds__(BLOCK) find_ranges_u16(const int* sizes, const unsigned short* keys, int* starts) {
  find(sizes, keys, starts);
}

KERNEL __launch_bounds__(BLOCK) find_ranges_u32(const int* sizes, const unsigned* keys, int* starts) {
  find(sizes, keys, starts);
}

// Sums the gradients of the slots of each Gaussian, in their order. sizes[5] = values of a slot.
KERNEL __launch_bounds__(BLOCK) sum_slots(
    const int* sizes, const int* begins, const int* counts, const float* of_slots, float* of_gaussians) {
  const Sizes s = read_sizes(sizes);
  const int values = sizes[5];
  const long long i = blockIdx.x * (long long)BLOCK + threadIdx.x;
  const int gaussian = int(i / values), value = int(i % values);
  if (gaussian >= s.cameras * s.gaussians) return;
  const int begin = min(begins[gaussian], s.capacity), stop = begin + min(counts[gaussian], s.capacity - begin);
  const float* slot = of_slots + size_t(gaussian / s.gaussians) * s.capacity * values + value;
  float sum = 0.0f;
  for (int k = begin; k < stop; ++k) sum += slot[size_t(k) * values];
  of_gaussians[i] = sum;
}
