// Applies one kernel per block of STRIDE x STRIDE px to an image and computes its moments, and the gradient of both
// (../stream.py). Compiled once for each stride. A launch handles some rows of blocks.
//
// A thread handles one block. It walks along the taps of its kernel, row by row, and holds the pixels of the current
// tap in registers: the next tap in a row needs one more column. Logits are stored tap by tap, so neighbouring threads
// read neighbours. There are no atomics: the gradient of the image is gathered, pixel by pixel, from the kernels that
// read it.
#include "device.cuh"

constexpr int THREADS = 128;
constexpr float LOG2_E = 1.44269504f;

__device__ __forceinline__ float exp_approx(float x) { return exp2_approx(x * LOG2_E); }

// Sizes of a launch. Arrays are [taps][rows][width] or [rows][width], images [COLORS][height][row].
struct Shape {
  int rows, width, side;  // blocks, blocks, taps
  int radius, count;      // taps, blocks
  int row, size;          // of a filtered image: px of a row, px of a colour
  int slab_row, slab_size;  // the same of the image that the kernels read

  __device__ __forceinline__ explicit Shape(const int* sizes) : rows(sizes[0]), width(sizes[1]), side(sizes[2]) {
    radius = side / 2;
    count = rows * width;
    row = width * STRIDE;
    size = row * rows * STRIDE;
    slab_row = row + 2 * radius;
    slab_size = slab_row * (rows * STRIDE + 2 * radius);
  }

  // First pixel of block i in an image whose rows have `row` px.
  __device__ __forceinline__ int corner(int i, int row) const { return i / width * STRIDE * row + i % width * STRIDE; }
};

struct Limits {
  float bound;  // of the logits; infinity: no bound
  float floor;  // subtracted from exp(logit - bound); 0: no floor, and the largest logit replaces the bound

  __device__ __forceinline__ explicit Limits(const float* limits) : bound(limits[0]), floor(limits[1]) {}
  __device__ __forceinline__ bool have_floor() const { return floor > 0.0f; }
  // NaN stays: fminf and fmaxf would hide it.
  __device__ __forceinline__ float clip(float x) const { return x > bound ? bound : x < -bound ? -bound : x; }
};

// The pixels of one block, all colours.
struct Pixels {
  float of[COLORS][STRIDE][STRIDE];

  template <typename Function>
  __device__ __forceinline__ void each(Function function) {
#pragma unroll
    for (int c = 0; c < COLORS; ++c)
#pragma unroll
      for (int y = 0; y < STRIDE; ++y)
#pragma unroll
        for (int x = 0; x < STRIDE; ++x) function(of[c][y][x], c, y, x);
  }

  // Loads from an image whose rows have `row` px and whose colours are `size` px apart.
  __device__ __forceinline__ void load(const float* corner, int row, int size) {
    each([&](float& value, int c, int y, int x) { value = corner[c * size + y * row + x]; });
  }

  __device__ __forceinline__ float dot(Pixels& other) {
    float sum = 0.0f;
    each([&](float& value, int c, int y, int x) { sum = fmaf(value, other.of[c][y][x], sum); });
    return sum;
  }
};

// The pixels that the current tap reads; steps along a row of taps.
struct Window {
  Pixels now;
  const float* next;  // first row of the next column

  // Loads all columns of the first tap except the last one.
  __device__ __forceinline__ void begin(const float* corner, const Shape& shape) {
#pragma unroll
    for (int x = 0; x + 1 < STRIDE; ++x) read(corner + x, x + 1, shape);
    next = corner + STRIDE - 1;
  }

  __device__ __forceinline__ void step(const Shape& shape) {
    now.each([&](float& value, int c, int y, int x) {
      if (x + 1 < STRIDE) value = now.of[c][y][x + 1];
    });
    read(next++, STRIDE - 1, shape);
  }

 private:
  __device__ __forceinline__ void read(const float* column, int x, const Shape& shape) {
#pragma unroll
    for (int c = 0; c < COLORS; ++c)
#pragma unroll
      for (int y = 0; y < STRIDE; ++y) now.of[c][y][x] = column[c * shape.slab_size + y * shape.slab_row];
  }
};

// Computes filtered pixels, moments and the log of the sum of the weights of each block.
KERNEL filter_rows(const int* sizes, const float* limit, const float* slab, const float* logits, float* image,
                   float* moments, float* normalizer) {
  const Shape shape(sizes);
  const Limits limits(limit);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= shape.count) return;
  const int taps = shape.side * shape.side;
  float peak = limits.bound;
  if (!limits.have_floor()) {
    peak = logits[i];
    for (int k = 1; k < taps; ++k) peak = fmaxf(peak, logits[size_t(k) * shape.count + i]);
    peak = limits.clip(peak);
  }

  Pixels total;
  total.each([](float& value, int, int, int) { value = 0.0f; });
  float sum = 0.0f, x_sum = 0.0f, y_sum = 0.0f, xx_sum = 0.0f, xy_sum = 0.0f, yy_sum = 0.0f;
  const float* corner = slab + shape.corner(i, shape.slab_row);
  const float* logit = logits + i;
  for (int dy = -shape.radius; dy <= shape.radius; ++dy, corner += shape.slab_row) {
    Window window;
    window.begin(corner, shape);
    float row = 0.0f, x_row = 0.0f, xx_row = 0.0f;
#pragma unroll 4
    for (int dx = -shape.radius; dx <= shape.radius; ++dx, logit += shape.count) {
      window.step(shape);
      const float weight = exp_approx(limits.clip(*logit) - peak) - limits.floor;
      const float x = dx * weight;
      row += weight;
      x_row += x;
      xx_row = fmaf(dx, x, xx_row);
      total.each([&](float& value, int c, int y, int x) { value = fmaf(weight, window.now.of[c][y][x], value); });
    }
    const float y = dy;
    sum += row;
    x_sum += x_row;
    y_sum = fmaf(y, row, y_sum);
    xx_sum += xx_row;
    xy_sum = fmaf(y, x_row, xy_sum);
    yy_sum = fmaf(y * y, row, yy_sum);
  }

  const float scale = 1.0f / sum;
  float* pixels = image + shape.corner(i, shape.row);
  total.each([&](float& value, int c, int y, int x) { pixels[c * shape.size + y * shape.row + x] = scale * value; });
  const float found[] = {x_sum, y_sum, xx_sum, xy_sum, yy_sum};
#pragma unroll
  for (int m = 0; m < 5; ++m) moments[m * shape.count + i] = scale * found[m];
  normalizer[i] = peak + logf(sum);
}

// Computes the gradients of the logits, and the kernels, which may use the memory of the logits.
KERNEL logit_gradients(const int* sizes, const float* limit, const float* slab, const float* logits, const float* image,
                       const float* moments, const float* normalizer, const float* d_image, const float* d_moments,
                       float* kernels, float* d_logits) {
  const Shape shape(sizes);
  const Limits limits(limit);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= shape.count) return;
  const float log_sum = normalizer[i];
  const float floor = limits.have_floor() ? limits.floor * expf(limits.bound - log_sum) : 0.0f;
  // sum_k h_k dh_k, computed from the outputs
  Pixels g, filtered;
  g.load(d_image + shape.corner(i, shape.row), shape.row, shape.size);
  filtered.load(image + shape.corner(i, shape.row), shape.row, shape.size);
  float inner = g.dot(filtered), d[5];
#pragma unroll
  for (int m = 0; m < 5; ++m) {
    d[m] = d_moments[m * shape.count + i];
    inner = fmaf(d[m], moments[m * shape.count + i], inner);
  }

  const float* corner = slab + shape.corner(i, shape.slab_row);
  size_t place = i;
  for (int dy = -shape.radius; dy <= shape.radius; ++dy, corner += shape.slab_row) {
    Window window;
    window.begin(corner, shape);
    const float y = dy;
    const float of_row = fmaf(y, fmaf(d[4], y, d[1]), -inner), of_x = fmaf(d[3], y, d[0]);
#pragma unroll 4
    for (int dx = -shape.radius; dx <= shape.radius; ++dx, place += shape.count) {
      window.step(shape);
      const float x = dx, logit = logits[place];
      const float slope = exp_approx(limits.clip(logit) - log_sum);
      const float gradient = slope * (g.dot(window.now) + fmaf(x, fmaf(d[2], x, of_x), of_row));
      const bool leads_out = (logit > limits.bound && gradient < 0.0f) || (logit < -limits.bound && gradient > 0.0f);
      kernels[place] = slope - floor;
      d_logits[place] = leads_out ? 0.0f : gradient;
    }
  }
}

// Computes the gradient of the image that the kernels read, one thread per pixel.
KERNEL slab_gradients(const int* sizes, const float* kernels, const float* d_image, float* d_slab) {
  const Shape shape(sizes);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= shape.slab_size) return;
  const int x = i % shape.slab_row, y = i / shape.slab_row;
  // Range of taps (dx, dy) with which the filtered pixel at (x - dx, y - dy) read this pixel.
  const int first_x = max(0, x - (shape.row - 1)), last_x = min(shape.side - 1, x);
  const int first_y = max(0, y - (shape.rows * STRIDE - 1)), last_y = min(shape.side - 1, y);
  float sum[COLORS] = {};
  for (int dy = first_y; dy <= last_y; ++dy) {
    const float* row = d_image + size_t(y - dy) * shape.row + x;
    const float* kernel = kernels + size_t(dy * shape.side) * shape.count + (y - dy) / STRIDE * shape.width;
#pragma unroll 4
    for (int dx = first_x; dx <= last_x; ++dx) {
      const float weight = kernel[size_t(dx) * shape.count + (x - dx) / STRIDE];
#pragma unroll
      for (int c = 0; c < COLORS; ++c) sum[c] = fmaf(weight, row[c * shape.size - dx], sum[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < COLORS; ++c) d_slab[c * shape.slab_size + i] = sum[c];
}
