// Applies kernels of blocks of kStride x kStride px to an image and computes their moments, and the gradient of both,
// eight kernels of a row at a time (../stream.py).
//
// The columns of images are grouped by x mod kStride (split in ../xla.py), so that eight kernels multiply eight
// neighbours in memory. The sums of a kernel stay in registers during the loop over its taps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace bags {

constexpr int kColors = BAGS_COLORS;                       // from ops/limits.py
using Strides = std::integer_sequence<int, BAGS_STRIDES>;  // strides that have code, from ops/limits.py
constexpr int kBlurMoments = 5;  // dx, dy, dx dx, dx dy, dy dy
constexpr float kLog2E = 1.44269504f;

// A block of rows of kernels: logits are [taps][rows][width], results of a kernel [rows][width].
struct Kernels {
  int64_t rows, width, side, stride;

  int64_t radius() const { return side / 2; }
  int64_t count() const { return rows * width; }
  int64_t columns() const { return width + 2 * radius() / stride; }    // of the image that the kernels read
  int64_t slab_rows() const { return rows * stride + 2 * radius(); }
  int64_t phases() const { return 2 * stride - 1; }
};

// Position where a tap starts to read, relative to the first tap.
struct Tap {
  int64_t phase, row, column;
};

// A position in an image [phases][kColors][rows][columns].
template <typename T>
struct Planes {
  T* at;
  int64_t phase, color, row;  // distances in memory

  Planes(T* start, int64_t rows, int64_t columns)
      : at(start), phase(kColors * rows * columns), color(rows * columns), row(columns) {}

  Planes Moved(int64_t rows, int64_t columns) const {
    Planes moved = *this;
    moved.at += rows * row + columns;
    return moved;
  }

  Planes Moved(const Tap& tap) const {
    Planes moved = Moved(tap.row, tap.column);
    moved.at += tap.phase * phase;
    return moved;
  }

  T* Pixel(int j, int c, int i) const { return at + j * phase + c * color + i * row; }
};

struct Limits {
  float bound;  // of the logits; infinity: no bound
  float floor;  // subtracted from exp(logit - bound); 0: no floor, and the largest logit replaces the bound

  bool HaveFloor() const { return floor > 0.0f; }
  Floats Clip(Floats x) const { return x > bound ? Splat(bound) : x < -bound ? Splat(-bound) : x; }
};

// Returns e^x for x < 87. NaN stays NaN.
inline Floats Exp(Floats x) { return x == x ? Exp2Minus(-kLog2E * x) : x; }

// Loads and stores up to eight neighbours, all eight if kWhole.
template <bool kWhole>
struct Lanes {
  int count;

  Floats Load(const float* from) const {
    if (kWhole) return bags::Load(from);
    Floats x = {};
    std::memcpy(&x, from, sizeof(float) * count);
    return x;
  }

  void Store(float* to, Floats x) const {
    if (kWhole) return bags::Store(to, x);
    std::memcpy(to, &x, sizeof(float) * count);
  }
};

// The pixels of eight blocks: [phase][colour][row].
template <int kStride>
struct BlockPixels {
  Floats of[kStride][kColors][kStride];

  // Calls body(value, j, c, i) for each pixel.
  template <typename F>
  void Each(F&& body) {
    for (int j = 0; j < kStride; ++j)
      for (int c = 0; c < kColors; ++c)
        for (int i = 0; i < kStride; ++i) body(of[j][c][i], j, c, i);
  }
};

// Calls body(k, dx, tap) for each tap k of row `y` of a kernel.
template <int kStride, typename F>
void ForEachTap(const Kernels& kernels, int64_t y, F&& body) {
  const float radius = static_cast<float>(kernels.radius());
  for (int64_t x = 0; x < kernels.side; ++x) body(y * kernels.side + x, x - radius, Tap{x % kStride, y, x / kStride});
}

struct BlurIn {
  const float *slab, *logits;
};

struct Filtered {
  float *image, *moments, *normalizer;
};

struct FilteredIn {
  const float *image, *moments, *normalizer;
};

struct BlurCotangents {
  const float *image, *moments;
};

// Applies the kernels x .. x + 7 of a row and computes their moments.
template <int kStride, bool kWhole>
void FilterEight(const Kernels& kernels, const Limits& limits, const BlurIn& in, const Filtered& out, int64_t y,
                 int64_t x) {
  const Lanes<kWhole> lanes{static_cast<int>(std::min<int64_t>(kLanes, kernels.width - x))};
  const int64_t here = y * kernels.width + x, count = kernels.count();
  Floats peak = Splat(limits.bound);
  if (!limits.HaveFloor()) {
    peak = lanes.Load(in.logits + here);
    for (int64_t k = 1; k < kernels.side * kernels.side; ++k) {
      peak = Max(peak, lanes.Load(in.logits + k * count + here));
    }
    peak = limits.Clip(peak);
  }
  const auto slab = Planes<const float>(in.slab, kernels.slab_rows(), kernels.columns()).Moved(y * kStride, x);
  BlockPixels<kStride> total = {};
  Floats sum = {}, found[kBlurMoments] = {};
  for (int64_t row = 0; row < kernels.side; ++row) {
    Floats of_row = {}, by_x = {}, by_xx = {};
    ForEachTap<kStride>(kernels, row, [&](int64_t k, float dx, const Tap& tap) {
      const Floats weight = Exp(limits.Clip(lanes.Load(in.logits + k * count + here)) - peak) - limits.floor;
      of_row += weight;
      by_x += weight * dx;
      by_xx += weight * (dx * dx);
      const auto read = slab.Moved(tap);
      total.Each([&](Floats& value, int j, int c, int i) { value += weight * lanes.Load(read.Pixel(j, c, i)); });
    });
    const float dy = static_cast<float>(row - kernels.radius());
    sum += of_row;
    found[0] += by_x;
    found[1] += of_row * dy;
    found[2] += by_xx;
    found[3] += by_x * dy;
    found[4] += of_row * (dy * dy);
  }

  const Floats scale = 1.0f / sum;
  const auto image = Planes<float>(out.image, kernels.rows * kStride, kernels.width).Moved(y * kStride, x);
  total.Each([&](Floats& value, int j, int c, int i) { lanes.Store(image.Pixel(j, c, i), scale * value); });
  for (int m = 0; m < kBlurMoments; ++m) lanes.Store(out.moments + m * count + here, scale * found[m]);
  for (int k = 0; k < lanes.count; ++k) out.normalizer[here + k] = peak[k] + std::log(sum[k]);
}

// Computes the gradients of the logits of the kernels x .. x + 7 of a row, and adds the gradients of the pixels that
// they read to d_slab, which begins with the first row of pixels that these kernels read.
template <int kStride, bool kWhole>
void DifferentiateEight(const Kernels& kernels, const Limits& limits, const BlurIn& in, const FilteredIn& filtered,
                        const BlurCotangents& cotangents, const Planes<float>& d_slab, float* d_logits, int64_t y,
                        int64_t x) {
  const Lanes<kWhole> lanes{static_cast<int>(std::min<int64_t>(kLanes, kernels.width - x))};
  const int64_t here = y * kernels.width + x, count = kernels.count();
  const int64_t image_rows = kernels.rows * kStride;
  const auto image = Planes<const float>(filtered.image, image_rows, kernels.width).Moved(y * kStride, x);
  const auto d_image = Planes<const float>(cotangents.image, image_rows, kernels.width).Moved(y * kStride, x);
  BlockPixels<kStride> g;
  Floats inner = {}, d[kBlurMoments];  // inner: sum_k h_k dh_k, computed from the outputs
  g.Each([&](Floats& value, int j, int c, int i) {
    value = lanes.Load(d_image.Pixel(j, c, i));
    inner += value * lanes.Load(image.Pixel(j, c, i));
  });
  for (int m = 0; m < kBlurMoments; ++m) {
    d[m] = lanes.Load(cotangents.moments + m * count + here);
    inner += d[m] * lanes.Load(filtered.moments + m * count + here);
  }
  const Floats log_sum = lanes.Load(filtered.normalizer + here);
  const Floats floor = limits.HaveFloor() ? limits.floor * Exp(limits.bound - log_sum) : Floats{};

  const auto slab = Planes<const float>(in.slab, kernels.slab_rows(), kernels.columns()).Moved(y * kStride, x);
  const auto d_read = d_slab.Moved(0, x);
  for (int64_t row = 0; row < kernels.side; ++row) {
    const float dy = static_cast<float>(row - kernels.radius());
    const Floats of_row = dy * (d[1] + d[4] * dy) - inner, of_x = d[0] + d[3] * dy;
    ForEachTap<kStride>(kernels, row, [&](int64_t k, float dx, const Tap& tap) {
      const Floats logit = lanes.Load(in.logits + k * count + here);
      const Floats slope = Exp(limits.Clip(logit) - log_sum), kernel = slope - floor;
      Floats gradient = of_row + dx * (of_x + d[2] * dx);
      const auto from = slab.Moved(tap);
      const auto to = d_read.Moved(tap);
      g.Each([&](Floats& value, int j, int c, int i) {
        gradient += value * lanes.Load(from.Pixel(j, c, i));
        float* sum = to.Pixel(j, c, i);
        lanes.Store(sum, lanes.Load(sum) + kernel * value);
      });
      gradient *= slope;
      const Ints above = (logit > limits.bound) & (gradient < 0.0f);
      const Ints below = (logit < -limits.bound) & (gradient > 0.0f);
      lanes.Store(d_logits + k * count + here, (above | below) ? Floats{} : gradient);
    });
  }
}

// Calls body(x, whole) for every eight kernels of a row. The last group may be smaller.
template <typename F>
void ForEachEight(const Kernels& kernels, F&& body) {
  int64_t x = 0;
  for (; x + kLanes <= kernels.width; x += kLanes) body(x, std::true_type());
  if (x < kernels.width) body(x, std::false_type());
}

}  // namespace bags
