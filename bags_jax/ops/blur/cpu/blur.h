// Applies kernels of blocks of kStride x kStride px to an image and computes their moments, and the gradient of both,
// kWideLanes kernels of a row at a time (../stream.py).
//
// The columns of images are grouped by x mod kStride (split in ../xla.py), so that neighbouring kernels multiply
// neighbours in memory. The sums of a kernel stay in registers during the loop over its taps. kStride taps of a row read
// nearly the same pixels, so they are handled together, and each pixel is read once for all of them.
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

  T* Pixel(int j, int c, int i) const { return at + j * phase + c * color + i * row; }
};

struct Limits {
  float bound;  // of the logits; infinity: no bound
  float floor;  // subtracted from exp(logit - bound); 0: no floor, and the largest logit replaces the bound

  bool HaveFloor() const { return floor > 0.0f; }
  WideFloats Clip(WideFloats x) const {
    return x > bound ? Splat<WideFloats>(bound) : x < -bound ? Splat<WideFloats>(-bound) : x;
  }
};

// Returns e^x for x < 87. NaN stays NaN.
inline WideFloats Exp(WideFloats x) { return x == x ? Exp2Minus(-kLog2E * x) : x; }

// Loads and stores up to kWideLanes neighbours, all of them if kWhole.
template <bool kWhole>
struct Lanes {
  int count;

  WideFloats Load(const float* from) const {
    if (kWhole) return bags::Load<WideFloats>(from);
    WideFloats x = {};
    std::memcpy(&x, from, sizeof(float) * count);
    return x;
  }

  void Store(float* to, WideFloats x) const {
    if (kWhole) return bags::Store(to, x);
    std::memcpy(to, &x, sizeof(float) * count);
  }
};

template <int... k, typename F>
inline void CallEach(std::integer_sequence<int, k...>, F&& body) {
  (body(std::integral_constant<int, k>()), ...);
}

// Calls body(k) for k = 0 .. kCount - 1, each a constant of the compiler.
template <int kCount, typename F>
inline void Unrolled(F&& body) {
  CallEach(std::make_integer_sequence<int, kCount>(), body);
}

// The pixels of kWideLanes blocks: [phase][colour][row].
template <int kStride>
struct BlockPixels {
  WideFloats of[kStride][kColors][kStride];

  // Calls body(value, j, c, i) for each pixel.
  template <typename F>
  void Each(F&& body) {
    for (int j = 0; j < kStride; ++j)
      for (int c = 0; c < kColors; ++c)
        for (int i = 0; i < kStride; ++i) body(of[j][c][i], j, c, i);
  }
};

// Calls body(e, c, i) for the pixels that kStride neighbouring taps read, e: phase.
template <int kStride, typename F>
inline void ForEachRead(F&& body) {
  Unrolled<2 * kStride - 1>(
      [&](auto e) { Unrolled<kColors>([&](auto c) { Unrolled<kStride>([&](auto i) { body(e, c, i); }); }); });
}

// Calls body(b, j) for the taps b and the pixels j of a block that read phase kPhase: j + b = kPhase.
template <int kStride, int kPhase, typename F>
inline void ForEachReader(F&& body) {
  constexpr int kFirst = kPhase < kStride ? 0 : kPhase - kStride + 1;
  Unrolled<kPhase - 2 * kFirst + 1>([&](auto k) { body(kPhase - kFirst - k, kFirst + k); });
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

// Applies the kernels of a row from x on and computes their moments.
template <int kStride, bool kWhole>
void FilterGroup(const Kernels& kernels, const Limits& limits, const BlurIn& in, const Filtered& out, int64_t y,
                 int64_t x) {
  const Lanes<kWhole> lanes{static_cast<int>(std::min<int64_t>(kWideLanes, kernels.width - x))};
  const int64_t here = y * kernels.width + x, count = kernels.count();
  WideFloats peak = Splat<WideFloats>(limits.bound);
  if (!limits.HaveFloor()) {
    peak = lanes.Load(in.logits + here);
    for (int64_t k = 1; k < kernels.side * kernels.side; ++k) {
      peak = Max(peak, lanes.Load(in.logits + k * count + here));
    }
    peak = limits.Clip(peak);
  }
  const auto slab = Planes<const float>(in.slab, kernels.slab_rows(), kernels.columns()).Moved(y * kStride, x);
  BlockPixels<kStride> total = {};
  WideFloats sum = {}, found[kBlurMoments] = {};
  const float* logits = in.logits + here;
  for (int64_t row = 0; row < kernels.side; ++row) {
    WideFloats of_row = {}, by_x = {}, by_xx = {};
    for (int64_t first = 0; first < kernels.side; first += kStride) {
      WideFloats weight[kStride] = {};  // 0: no such tap in the row
      for (int b = 0; b < kStride && first + b < kernels.side; ++b, logits += count) {
        const float dx = static_cast<float>(first + b - kernels.radius());
        weight[b] = Exp(limits.Clip(lanes.Load(logits)) - peak) - limits.floor;
        of_row += weight[b];
        by_x += weight[b] * dx;
        by_xx += weight[b] * (dx * dx);
      }
      const auto read = slab.Moved(row, first / kStride);
      ForEachRead<kStride>([&](auto e, int c, int i) {
        const WideFloats pixel = lanes.Load(read.Pixel(e, c, i));
        ForEachReader<kStride, decltype(e)::value>([&](int b, int j) { total.of[j][c][i] += weight[b] * pixel; });
      });
    }
    const float dy = static_cast<float>(row - kernels.radius());
    sum += of_row;
    found[0] += by_x;
    found[1] += of_row * dy;
    found[2] += by_xx;
    found[3] += by_x * dy;
    found[4] += of_row * (dy * dy);
  }

  const WideFloats scale = 1.0f / sum;
  const auto image = Planes<float>(out.image, kernels.rows * kStride, kernels.width).Moved(y * kStride, x);
  total.Each([&](WideFloats& value, int j, int c, int i) { lanes.Store(image.Pixel(j, c, i), scale * value); });
  for (int m = 0; m < kBlurMoments; ++m) lanes.Store(out.moments + m * count + here, scale * found[m]);
  for (int k = 0; k < lanes.count; ++k) out.normalizer[here + k] = peak[k] + std::log(sum[k]);
}

// Computes the gradients of the logits of the kernels of a row from x on. Adds the gradients of the pixels that they
// read to d_slab, which begins with the first row of pixels that these kernels read. The first `done` kernels have
// been added by the group before, and are not added again.
template <int kStride, bool kWhole>
void DifferentiateGroup(const Kernels& kernels, const Limits& limits, const BlurIn& in, const FilteredIn& filtered,
                        const BlurCotangents& cotangents, const Planes<float>& d_slab, float* d_logits, int64_t y,
                        int64_t x, int64_t done) {
  const Lanes<kWhole> lanes{static_cast<int>(std::min<int64_t>(kWideLanes, kernels.width - x))};
  const int64_t here = y * kernels.width + x, count = kernels.count();
  const int64_t image_rows = kernels.rows * kStride;
  const auto image = Planes<const float>(filtered.image, image_rows, kernels.width).Moved(y * kStride, x);
  const auto d_image = Planes<const float>(cotangents.image, image_rows, kernels.width).Moved(y * kStride, x);
  BlockPixels<kStride> g;
  WideFloats inner = {}, d[kBlurMoments];  // inner: sum_k h_k dh_k, computed from the outputs
  g.Each([&](WideFloats& value, int j, int c, int i) {
    value = lanes.Load(d_image.Pixel(j, c, i));
    inner += value * lanes.Load(image.Pixel(j, c, i));
  });
  for (int m = 0; m < kBlurMoments; ++m) {
    d[m] = lanes.Load(cotangents.moments + m * count + here);
    inner += d[m] * lanes.Load(filtered.moments + m * count + here);
  }
  const WideFloats log_sum = lanes.Load(filtered.normalizer + here);
  const WideFloats floor = limits.HaveFloor() ? limits.floor * Exp(limits.bound - log_sum) : WideFloats{};
  WideFloats fresh;
  for (int k = 0; k < kWideLanes; ++k) fresh[k] = k < done ? 0.0f : 1.0f;

  const auto slab = Planes<const float>(in.slab, kernels.slab_rows(), kernels.columns()).Moved(y * kStride, x);
  const auto d_read = d_slab.Moved(0, x);
  for (int64_t row = 0; row < kernels.side; ++row) {
    const float dy = static_cast<float>(row - kernels.radius());
    const WideFloats of_row = dy * (d[1] + d[4] * dy) - inner, of_x = d[0] + d[3] * dy;
    for (int64_t first = 0; first < kernels.side; first += kStride) {
      const int64_t tap = (row * kernels.side + first) * count + here;
      const int num = static_cast<int>(std::min<int64_t>(kStride, kernels.side - first));
      WideFloats slope[kStride] = {}, kernel[kStride] = {}, gradient[kStride] = {};
      for (int b = 0; b < num; ++b) {
        const float dx = static_cast<float>(first + b - kernels.radius());
        slope[b] = Exp(limits.Clip(lanes.Load(in.logits + tap + b * count)) - log_sum);
        kernel[b] = (slope[b] - floor) * fresh;
        gradient[b] = of_row + dx * (of_x + d[2] * dx);
      }
      const auto from = slab.Moved(row, first / kStride);
      const auto to = d_read.Moved(row, first / kStride);
      ForEachRead<kStride>([&](auto e, int c, int i) {
        const WideFloats pixel = lanes.Load(from.Pixel(e, c, i));
        WideFloats d_pixel = lanes.Load(to.Pixel(e, c, i));
        ForEachReader<kStride, decltype(e)::value>([&](int b, int j) {
          gradient[b] += g.of[j][c][i] * pixel;
          d_pixel += kernel[b] * g.of[j][c][i];
        });
        lanes.Store(to.Pixel(e, c, i), d_pixel);
      });
      for (int b = 0; b < num; ++b) {
        const WideFloats logit = lanes.Load(in.logits + tap + b * count), d_logit = slope[b] * gradient[b];
        const auto above = (logit > limits.bound) & (d_logit < 0.0f);
        const auto below = (logit < -limits.bound) & (d_logit > 0.0f);
        lanes.Store(d_logits + tap + b * count, (above | below) ? WideFloats{} : d_logit);
      }
    }
  }
}

// Calls body(x, done, whole) for groups of kWideLanes kernels from x on that cover a row. The last group overlaps the one
// before it, by `done` kernels. A row that is narrower is one group that is not whole.
template <typename F>
void ForEachGroup(const Kernels& kernels, F&& body) {
  if (kernels.width < kWideLanes) return body(int64_t{0}, int64_t{0}, std::false_type());
  for (int64_t x = 0; x < kernels.width; x += kWideLanes) {
    const int64_t start = std::min(x, kernels.width - kWideLanes);
    body(start, x - start, std::true_type());
  }
}

}  // namespace bags
