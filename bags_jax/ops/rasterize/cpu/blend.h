// Front-to-back blending and its gradient, eight pixels of a row at a time.
//
// A tile is split into blocks of at most 8 x 8 pixels, one vector per row. For each Gaussian in the list of the tile,
// one test finds the rows of the block that the Gaussian reaches; only these are blended. A row is closed when none of
// its pixels has transmittance left, and the block ends with its last row.
//
// The exponent is a completed square, with k = xy / xx and d = yy - xy^2 / xx of the conic, and s = log2(e) / 2:
//   sigma log2(e) = s xx (dx + k dy)^2 + s d dy^2
// The second term and k dy are the same for a row. No difference of large products is rounded, because d is computed
// once per Gaussian in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "binning.h"
#include "simd.h"

namespace bags {

// From ops/limits.py, defined by toolchain/cpp_build.py.
constexpr float kMinAlpha = BAGS_MIN_ALPHA;
constexpr float kMaxAlpha = BAGS_MAX_ALPHA;
constexpr float kMinTransmittance = BAGS_MIN_TRANSMITTANCE;
using Channels = std::integer_sequence<int, BAGS_CHANNELS>;  // channel counts that have code
constexpr int kMaxChannels = std::max({BAGS_CHANNELS});

constexpr int kSide = kLanes;    // of a block, px
constexpr int kMoments = 6;      // of dL/dsigma: 1, dx, dy, dx^2, dx dy, dy^2
constexpr int kOpenEvery = 16;   // Gaussians between two tests for rows with transmittance left
constexpr double kHalfLog2E = 0.72134752044448170368;

// Numbers of one Gaussian that blending reads, on one cache line.
struct alignas(64) Record {
  float x, y;      // mean, px
  float along;     // s xx
  float slope;     // k
  float across;    // s d
  float opacity;
  float reach;     // largest exponent at which alpha is at least 1/255, plus some slack; pixels beyond are skipped
  float padding;
  float features[kMaxChannels];
};
constexpr int kRecordFloats = sizeof(Record) / sizeof(float);

inline Record MakeRecord(const float* mean, const float* conic, float opacity, const float* features, int channels) {
  const double xx = conic[0], xy = conic[1], yy = conic[2];
  Record r = {};
  r.x = mean[0];
  r.y = mean[1];
  r.along = static_cast<float>(kHalfLog2E * xx);
  r.slope = static_cast<float>(xy / xx);
  r.across = static_cast<float>(kHalfLog2E * (yy - xy * xy / xx));
  r.opacity = opacity;
  r.reach = opacity >= kMinAlpha ? 1.0001f * std::log2(opacity / kMinAlpha) + 1e-4f : -1.0f;
  std::copy(features, features + channels, r.features);
  return r;
}

// At most 8 x 8 pixels of a tile.
struct Block {
  int32_t x, y, columns, rows;
  bool first;  // of its tile

  // Transmittance of a row at the start: 1 for pixels of the block, 0 for other lanes.
  Floats Light() const {
    Floats light;
    for (int k = 0; k < kLanes; ++k) light[k] = k < columns ? 1.0f : 0.0f;
    return light;
  }
};

template <typename F>
void ForEachBlock(const Grid& grid, int32_t tile, F&& body) {
  const int32_t x0 = tile % grid.columns() * grid.tile, y0 = tile / grid.columns() * grid.tile;
  const int32_t x1 = std::min(x0 + grid.tile, grid.width), y1 = std::min(y0 + grid.tile, grid.height);
  for (int32_t y = y0; y < y1; y += kSide) {
    for (int32_t x = x0; x < x1; x += kSide) {
      body(Block{x, y, std::min(kSide, x1 - x), std::min(kSide, y1 - y), x == x0 && y == y0});
    }
  }
}

// Pixel centres relative to the corner of a block, the same for columns and rows.
inline Floats Centers() { return Floats{0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f}; }

// Terms of the exponent of one Gaussian that are the same for all pixels of a row, for the eight rows of a block.
struct alignas(32) RowTerms {
  float shift[kSide];  // u + k dy; minus x of the pixel, it is squared
  float start[kSide];  // s d dy^2
  float u, v;          // mean relative to the corner of the block
  uint32_t rows;       // bit r: the Gaussian reaches row r
};

inline void FindRows(const Record& g, const Block& block, RowTerms& terms) {
  terms.u = g.x - static_cast<float>(block.x);
  terms.v = g.y - static_cast<float>(block.y);
  const Floats dy = terms.v - Centers();
  const Floats shift = terms.u + g.slope * dy, start = g.across * dy * dy;
  // Distance of the pixels of a row from the ridge of the Gaussian: 0 if it passes between the first and the last.
  const Floats gap = Max(Max(shift - (kSide - 0.5f), 0.5f - shift), Floats{});
  terms.rows = Bits(g.along * gap * gap + start <= g.reach);
  Store(terms.shift, shift);
  Store(terms.start, start);
}

struct Alpha {
  Floats alpha;  // clamped; 0 where the Gaussian is skipped
  Floats raw;    // before the clamp
};

inline Alpha AlphaOfRow(const Record& g, const RowTerms& terms, int row) {
  const Floats t = terms.shift[row] - Centers();
  const Floats exponent = g.along * t * t + terms.start[row];
  Floats raw = g.opacity * Exp2Minus(exponent);
  raw = (raw >= kMinAlpha) & (exponent >= 0.0f) ? raw : Floats{};
  return {Min(raw, Splat(kMaxAlpha)), raw};
}

// Returns the weight of a Gaussian and updates the transmittance `light`: 0 from the Gaussian on at which a pixel
// stops.
inline Floats Absorb(Floats alpha, Floats& light) {
  const Floats behind = light * (1.0f - alpha);
  const Ints goes_on = behind > kMinTransmittance;
  const Floats weight = goes_on ? alpha * light : Floats{};
  light = goes_on ? behind : Floats{};
  return weight;
}

// Returns the rows in which some pixel has transmittance left.
inline uint32_t OpenRows(const Floats* light) {
  uint32_t open = 0;
  for (int r = 0; r < kSide; ++r) open |= (Bits(light[r] > 0.0f) != 0 ? 1u : 0u) << r;
  return open;
}

// Walks down the list of a tile: calls visit(place, record, terms, rows) for each Gaussian; rows may be 0.
// Returns the first place that was not visited because no transmittance was left.
template <typename F>
int32_t Walk(const Record* records, const int32_t* ids, int32_t start, int32_t stop, const Block& block,
             const Floats* light, F&& visit) {
  RowTerms terms;
  uint32_t open = OpenRows(light);
  for (int32_t place = start; place < stop; ++place) {
    if ((place - start) % kOpenEvery == 0 && (open = OpenRows(light)) == 0) return place;
    if (place + 4 < stop) __builtin_prefetch(&records[ids[place + 4]]);
    const Record& g = records[ids[place]];
    FindRows(g, block, terms);
    visit(place, g, terms, terms.rows & open);
  }
  return stop;
}

template <int kChannels>
void BlendBlock(const Grid& grid, const Block& block, const Record* records, const int32_t* ids, int32_t start,
                int32_t stop, float* colors, float* alphas) {
  Floats light[kSide] = {}, sums[kSide][kChannels + 1] = {};  // the last one sums the weights
  for (int r = 0; r < block.rows; ++r) light[r] = block.Light();
  Walk(records, ids, start, stop, block, light, [&](int32_t, const Record& g, const RowTerms& terms, uint32_t rows) {
    for (; rows != 0; rows &= rows - 1) {
      const int r = __builtin_ctz(rows);
      const Floats weight = Absorb(AlphaOfRow(g, terms, r).alpha, light[r]);
      for (int c = 0; c < kChannels; ++c) sums[r][c] += weight * g.features[c];
      sums[r][kChannels] += weight;
    }
  });
  for (int r = 0; r < block.rows; ++r) {
    const int64_t pixel = static_cast<int64_t>(block.y + r) * grid.width + block.x;
    for (int k = 0; k < block.columns; ++k) {
      for (int c = 0; c < kChannels; ++c) colors[(pixel + k) * kChannels + c] = sums[r][c][k];
      alphas[pixel + k] = sums[r][kChannels][k];
    }
  }
}

// An image and its cotangent: [H, W, D] and [H, W].
struct Pixels {
  const float *colors, *alphas, *d_colors, *d_alphas;
};

// State of the pixels of a block in the backward pass.
template <int kChannels>
struct BlockGradient {
  Floats light[kSide] = {};
  Floats remainder[kSide] = {};         // contribution of the Gaussians still to come, times the cotangent
  Floats toward[kSide][kChannels + 1];  // cotangents of the channels and of alpha

  BlockGradient(const Grid& grid, const Block& block, const Pixels& pixels) {
    std::memset(toward, 0, sizeof toward);
    for (int r = 0; r < block.rows; ++r) {
      const int64_t pixel = static_cast<int64_t>(block.y + r) * grid.width + block.x;
      light[r] = block.Light();
      for (int k = 0; k < block.columns; ++k) {
        for (int c = 0; c < kChannels; ++c) {
          const float d = pixels.d_colors[(pixel + k) * kChannels + c];
          toward[r][c][k] = d;
          remainder[r][k] += pixels.colors[(pixel + k) * kChannels + c] * d;
        }
        toward[r][kChannels][k] = pixels.d_alphas[pixel + k];
        remainder[r][k] += pixels.alphas[pixel + k] * pixels.d_alphas[pixel + k];
      }
    }
  }

  // Adds the contribution of the rows of one Gaussian: moments of dL/dsigma and the gradients of the features, as
  // kMoments + kChannels numbers. ../xla.py explains dL/dalpha with a running remainder.
  void AddRows(const Record& g, const RowTerms& terms, uint32_t rows, float* gradient) {
    constexpr int kSums = kMoments + kChannels, kPadded = (kSums + kLanes - 1) / kLanes * kLanes;
    Floats plain = {}, by_dy = {}, by_dy_dy = {};  // sums over rows of dL/dsigma times 1, dy, dy^2
    Floats sums[kPadded] = {};
    for (; rows != 0; rows &= rows - 1) {
      const int r = __builtin_ctz(rows);
      const auto [alpha, raw] = AlphaOfRow(g, terms, r);
      const Floats before = light[r];
      const Floats weight = Absorb(alpha, light[r]);
      Floats slope = toward[r][kChannels];
      for (int c = 0; c < kChannels; ++c) slope += g.features[c] * toward[r][c];
      remainder[r] -= weight * slope;
      const Floats d_alpha = before * slope - remainder[r] / (1.0f - alpha);
      const Floats d_sigma = (weight > 0.0f) & (raw < kMaxAlpha) ? -d_alpha * raw : Floats{};
      const float dy = terms.v - (r + 0.5f);
      plain += d_sigma;
      by_dy += d_sigma * dy;
      by_dy_dy += d_sigma * (dy * dy);
      for (int c = 0; c < kChannels; ++c) sums[kMoments + c] += weight * toward[r][c];
    }
    const Floats dx = terms.u - Centers();
    sums[0] = plain;
    sums[1] = plain * dx;
    sums[2] = by_dy;
    sums[3] = sums[1] * dx;
    sums[4] = by_dy * dx;
    sums[5] = by_dy_dy;
    float totals[kPadded];
    for (int k = 0; k < kPadded; k += kLanes) Store(totals + k, SumEach(sums + k));
    for (int k = 0; k < kSums; ++k) gradient[k] += totals[k];
  }
};

// Writes the sums of each intersection of a tile to its slot.
template <int kChannels>
void DifferentiateBlock(const Grid& grid, const Block& block, const Record* records, const Bins& bins, int32_t tile,
                        const Pixels& pixels, float* by_slot) {
  constexpr int kSums = kMoments + kChannels;
  const int32_t start = bins.starts[tile], stop = bins.starts[tile + 1];
  BlockGradient<kChannels> gradient(grid, block, pixels);
  const auto slot_of = [&](int32_t place) { return by_slot + static_cast<int64_t>(bins.slots[place]) * kSums; };
  if (block.first) {
    for (int32_t place = start; place < stop; ++place) std::memset(slot_of(place), 0, kSums * sizeof(float));
  }
  Walk(records, bins.ids, start, stop, block, gradient.light,
       [&](int32_t place, const Record& g, const RowTerms& terms, uint32_t rows) {
         if (rows != 0) gradient.AddRows(g, terms, rows, slot_of(place));
       });
}

// Gradients of one Gaussian.
struct GradientRow {
  float *mean, *conic, *opacity, *features;
};

// Sums the slots of one Gaussian, in their order, and turns moments into gradients: sigma is half the quadratic form of
// the conic in dx and dy, and dL/dopacity is -(sum of dL/dsigma) / opacity.
template <int kChannels>
void ReduceSlots(const float* by_slot, const int32_t* span, const float* conic, float opacity, GradientRow out) {
  constexpr int kSums = kMoments + kChannels;
  float sums[kSums] = {};
  for (int64_t slot = span[0]; slot < span[1]; ++slot) {
    for (int k = 0; k < kSums; ++k) sums[k] += by_slot[slot * kSums + k];
  }
  const float xx = conic[0], xy = conic[1], yy = conic[2];
  out.mean[0] = xx * sums[1] + xy * sums[2];
  out.mean[1] = yy * sums[2] + xy * sums[1];
  out.conic[0] = 0.5f * sums[3];
  out.conic[1] = sums[4];
  out.conic[2] = 0.5f * sums[5];
  out.opacity[0] = -sums[0] / std::fmax(opacity, 1e-6f);
  std::copy(sums + kMoments, sums + kSums, out.features);
}

}  // namespace bags
