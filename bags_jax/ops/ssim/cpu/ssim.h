// Structural similarity of two images and its gradient, eight numbers of a row at a time.
//
// The channels of a pixel are neighbours: a row of pixels is a row of numbers, where neighbouring pixels are `channels`
// numbers apart. The window is separable: columns are filtered into a row with zeros on both sides, then the row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

namespace bags {

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1;
constexpr int kMeans = 5;   // weighted by the window: x, y, x x, y y, x y
constexpr int kSlopes = 3;  // derivatives of a similarity by the means of x, x x, x y

struct Window {
  float taps[kTaps];
  float c1, c2;
};

struct Pictures {
  int64_t height, width, channels;
  const float *x, *y;  // [height][width][channels]
  const bool* valid;   // [height][width]; invalid pixels count as beyond the border

  int64_t numbers() const { return width * channels; }
  int64_t pitch() const { return (numbers() + kLanes - 1) / kLanes * kLanes; }

  // Copies a row of an image, or ones if image is null. Invalid pixels become 0.
  void CopyRow(const float* image, int64_t row, float* to) const {
    const bool* is_valid = valid + row * width;
    const bool all = std::memchr(is_valid, 0, width) == nullptr;
    if (all && image != nullptr) std::memcpy(to, image + row * numbers(), numbers() * sizeof(float));
    if (all && image == nullptr) std::fill(to, to + numbers(), 1.0f);
    for (int64_t i = 0; !all && i < numbers(); ++i) {
      to[i] = !is_valid[i / channels] ? 0.0f : image == nullptr ? 1.0f : image[row * numbers() + i];
    }
  }
};

// Rows of numbers with zeros around each of them.
class Rows {
 public:
  Rows(const Pictures& pictures, int64_t count)
      : border_(kRadius * pictures.channels),
        stride_(pictures.pitch() + 2 * border_),
        numbers_(count * stride_ + kLanes) {}

  float* operator[](int64_t row) { return numbers_.data() + row * stride_ + border_; }

 private:
  const int64_t border_, stride_;
  std::vector<float> numbers_;
};

// Filters along a row, at eight numbers.
inline Floats FilterAlong(const Window& window, const float* row, int64_t channels) {
  Floats sum = {};
  for (int k = 0; k < kTaps; ++k) sum += window.taps[k] * Load(row + (k - kRadius) * channels);
  return sum;
}

// Computes eight similarities from means, and their derivatives. With a = 2 mx my + c1, b = 2 cov + c2,
// p = mx^2 + my^2 + c1 and q = var x + var y + c2, a similarity is a b / (p q).
inline Floats Similarity(const Window& window, const Floats* means, Floats* slopes) {
  const Floats mx = means[0], my = means[1];
  const Floats a = 2.0f * mx * my + window.c1, b = 2.0f * (means[4] - mx * my) + window.c2;
  const Floats p = mx * mx + my * my + window.c1, q = means[2] + means[3] - mx * mx - my * my + window.c2;
  const Floats over = 1.0f / (p * q);
  const Floats similarity = a * b * over;
  slopes[0] = 2.0f * over * (my * (b - a) - mx * similarity * (q - p));
  slopes[1] = -similarity * p * over;
  slopes[2] = 2.0f * a * over;
  return similarity;
}

// Computes for rows [first, stop) the sums of their similarities and the slopes [kSlopes][height][pitch], 0 if invalid.
inline void CompareRows(const Window& window, const Pictures& in, int64_t first, int64_t stop, float* sums,
                        float* slopes) {
  const int64_t count = stop - first, pitch = in.pitch();
  Rows x(in, count + 2 * kRadius), y(in, count + 2 * kRadius), down(in, kMeans), weight(in, 1);
  for (int64_t row = std::max<int64_t>(first - kRadius, 0); row < std::min(stop + kRadius, in.height); ++row) {
    in.CopyRow(in.x, row, x[row - first + kRadius]);
    in.CopyRow(in.y, row, y[row - first + kRadius]);
  }
  for (int64_t row = first; row < stop; ++row) {
    for (int64_t i = 0; i < pitch; i += kLanes) {
      Floats means[kMeans] = {};
      for (int k = 0; k < kTaps; ++k) {
        const Floats u = Load(x[row - first + k] + i), v = Load(y[row - first + k] + i);
        const Floats tu = window.taps[k] * u, tv = window.taps[k] * v;
        means[0] += tu;
        means[1] += tv;
        means[2] += tu * u;
        means[3] += tv * v;
        means[4] += tu * v;
      }
      for (int j = 0; j < kMeans; ++j) Store(down[j] + i, means[j]);
    }
    in.CopyRow(nullptr, row, weight[0]);
    Floats sum = {};
    for (int64_t i = 0; i < pitch; i += kLanes) {
      Floats means[kMeans], d_means[kSlopes];
      for (int j = 0; j < kMeans; ++j) means[j] = FilterAlong(window, down[j] + i, in.channels);
      const Floats here = Load(weight[0] + i);
      sum += here * Similarity(window, means, d_means);
      for (int j = 0; j < kSlopes; ++j) Store(slopes + (j * in.height + row) * pitch + i, here * d_means[j]);
    }
    sums[row] = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) sums[row] += sum[lane];
  }
}

// Computes for rows [first, stop) the gradient of the sum of all similarities by x.
inline void GradientOfRows(const Window& window, const Pictures& in, const float* slopes, int64_t first, int64_t stop,
                           float* d_x) {
  const int64_t pitch = in.pitch();
  Rows down(in, kSlopes), x(in, 1), y(in, 1), weight(in, 1);
  for (int64_t row = first; row < stop; ++row) {
    const int64_t above = std::max<int64_t>(row - kRadius, 0), below = std::min(row + kRadius + 1, in.height);
    for (int j = 0; j < kSlopes; ++j) {
      for (int64_t i = 0; i < pitch; i += kLanes) {
        Floats sum = {};
        for (int64_t k = above; k < below; ++k) {
          sum += window.taps[k - row + kRadius] * Load(slopes + (j * in.height + k) * pitch + i);
        }
        Store(down[j] + i, sum);
      }
    }
    in.CopyRow(in.x, row, x[0]);
    in.CopyRow(in.y, row, y[0]);
    in.CopyRow(nullptr, row, weight[0]);
    for (int64_t i = 0; i < pitch; i += kLanes) {
      Floats d_means[kSlopes];
      for (int j = 0; j < kSlopes; ++j) d_means[j] = FilterAlong(window, down[j] + i, in.channels);
      const Floats u = Load(x[0] + i), v = Load(y[0] + i);
      Store(x[0] + i, Load(weight[0] + i) * (d_means[0] + 2.0f * u * d_means[1] + v * d_means[2]));
    }
    std::memcpy(d_x + row * in.numbers(), x[0], in.numbers() * sizeof(float));
  }
}

}  // namespace bags
