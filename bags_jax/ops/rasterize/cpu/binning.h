// Lists the intersections of tiles and Gaussians, front to back: the rules of tiles.py, without static shapes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "parallel.h"

namespace bags {

constexpr float kSlackPx = 1e-3f;  // widens intervals, so that rounding never loses a pixel

struct Grid {
  int32_t width, height;  // image, px
  int32_t tile;           // side of a tile, px

  int32_t columns() const { return (width + tile - 1) / tile; }
  int32_t rows() const { return (height + tile - 1) / tile; }
};

// N Gaussians on the screen: arrays of struct Projected.
struct Screen {
  const float* means;   // [N, 2]
  const float* covs;    // [N, 3]
  const float* radii;   // [N, 2]
  const float* depths;  // [N]
  int64_t num;

  bool visible(int64_t n) const { return radii[2 * n] > 0 && radii[2 * n + 1] > 0; }
};

// Consecutive tiles in one row of tiles that one Gaussian touches.
struct Strip {
  int32_t gaussian, row, first, count;
};

struct Range {
  int32_t first, stop;
};

// Returns the tiles with a pixel centre between low and high. Centres are half a pixel inside the border of a tile.
inline Range TilesBetween(float low, float high, int32_t tile, int32_t limit) {
  const float first = std::ceil((low + 0.5f) / tile) - 1.0f, stop = std::floor((high - 0.5f) / tile) + 1.0f;
  const float most = static_cast<float>(limit);  // clip before the cast, which is undefined beyond 2^31
  return {static_cast<int32_t>(std::fmin(std::fmax(first, 0.0f), most)),
          static_cast<int32_t>(std::fmin(std::fmax(stop, 0.0f), most))};
}

// Appends the strips of one Gaussian. The right border of an ellipse is a concave function of y. Its maximum over a row
// of tiles is at the y of the rightmost point, clipped to the row. The left border likewise.
inline void AppendStrips(const Screen& screen, int32_t n, const Grid& grid, std::vector<Strip>& strips) {
  const float x = screen.means[2 * n], y = screen.means[2 * n + 1];
  const float xx = screen.covs[3 * n], xy = screen.covs[3 * n + 1], yy = screen.covs[3 * n + 2];
  const float rx = screen.radii[2 * n] + kSlackPx, ry = screen.radii[2 * n + 1] + kSlackPx;
  const float tip = rx * xy / xx, slope = xy / yy, scale = std::sqrt(std::fmax(xx * yy - xy * xy, 0.0f)) / yy;
  const Range rows = TilesBetween(y - ry, y + ry, grid.tile, grid.rows());
  for (int32_t row = rows.first; row < rows.stop; ++row) {
    const float top = std::clamp(row * grid.tile + 0.5f - kSlackPx - y, -ry, ry);
    const float bottom = std::clamp((row + 1) * grid.tile - 0.5f + kSlackPx - y, -ry, ry);
    const float right = std::clamp(tip, top, bottom), left = std::clamp(-tip, top, bottom);
    const float high = x + right * slope + scale * std::sqrt(std::fmax(ry * ry - right * right, 0.0f)) + kSlackPx;
    const float low = x + left * slope - scale * std::sqrt(std::fmax(ry * ry - left * left, 0.0f)) - kSlackPx;
    const Range columns = TilesBetween(low, high, grid.tile, grid.columns());
    if (columns.stop > columns.first) strips.push_back({n, row, columns.first, columns.stop - columns.first});
  }
}

// Returns the bits of a float, changed so that they order like the float when read as an unsigned number.
inline uint32_t OrderedBits(float x) {
  x += 0.0f;  // -0 becomes +0
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// Returns the indices of the visible Gaussians by depth, then by index: a radix sort with 11 bits per round.
inline std::vector<int32_t> DepthOrder(const Screen& screen) {
  struct Item {
    uint32_t key;
    int32_t n;
  };
  constexpr int kBits = 11, kRounds = 3, kDigits = 1 << kBits;
  std::vector<Item> items;
  items.reserve(screen.num);
  std::vector<int32_t> counts(kRounds * kDigits, 0);
  for (int32_t n = 0; n < screen.num; ++n) {
    if (!screen.visible(n)) continue;
    const uint32_t key = OrderedBits(screen.depths[n]);
    items.push_back({key, n});
    for (int r = 0; r < kRounds; ++r) ++counts[r * kDigits + ((key >> (kBits * r)) & (kDigits - 1))];
  }
  std::vector<Item> sorted(items.size());
  for (int r = 0; r < kRounds; ++r) {
    int32_t begin = 0, *count = &counts[r * kDigits];
    for (int d = 0; d < kDigits; ++d) begin += std::exchange(count[d], begin);
    for (const Item& item : items) sorted[count[(item.key >> (kBits * r)) & (kDigits - 1)]++] = item;
    items.swap(sorted);
  }
  std::vector<int32_t> order(items.size());
  for (size_t k = 0; k < items.size(); ++k) order[k] = items[k].n;
  return order;
}

// Returns the strips of all visible Gaussians, front to back, in pieces made by several threads.
inline std::vector<std::vector<Strip>> MakeStrips(const Screen& screen, const std::vector<int32_t>& order,
                                                  const Grid& grid, xla::ffi::ThreadPool& pool) {
  constexpr int64_t kPiece = 1024;  // Gaussians
  const int64_t visible = static_cast<int64_t>(order.size());
  std::vector<std::vector<Strip>> pieces((visible + kPiece - 1) / kPiece);
  ParallelFor(pool, static_cast<int64_t>(pieces.size()), [&](int64_t piece) {
    pieces[piece].reserve(2 * kPiece);
    const int64_t stop = std::min(visible, (piece + 1) * kPiece);
    for (int64_t k = piece * kPiece; k < stop; ++k) AppendStrips(screen, order[k], grid, pieces[piece]);
  });
  return pieces;
}

inline int64_t CountIntersections(const std::vector<std::vector<Strip>>& pieces) {
  int64_t total = 0;
  for (const auto& piece : pieces) {
    for (const Strip& strip : piece) total += strip.count;
  }
  return total;
}

inline int32_t Saturate(int64_t count) {
  return static_cast<int32_t>(std::min<int64_t>(count, std::numeric_limits<int32_t>::max()));
}

// Intersections sorted by tile, front to back within a tile. The slot of an intersection is its place when sorted by
// Gaussian, where the gradients of one Gaussian are neighbours.
struct Bins {
  int32_t* ids;     // [M] Gaussian of an intersection
  int32_t* slots;   // [M] slot of an intersection
  int32_t* starts;  // [T + 1] tile t owns the intersections starts[t] : starts[t + 1]
  int32_t* spans;   // [N, 2] first slot of a Gaussian, and the slot after its last one
};

// Drops the tiles farthest back that exceed the capacity of the buffer.
inline void CutToCapacity(std::vector<std::vector<Strip>>& pieces, int64_t capacity) {
  for (auto& piece : pieces) {
    for (Strip& strip : piece) {
      strip.count = static_cast<int32_t>(std::min<int64_t>(strip.count, capacity));
      capacity -= strip.count;
    }
  }
}

// Sorts the intersections by tile, by counting. They are front to back before and after.
inline void FillBins(const std::vector<std::vector<Strip>>& pieces, const Screen& screen, const Grid& grid, Bins bins) {
  const int32_t columns = grid.columns(), tiles = columns * grid.rows();
  std::vector<int32_t> next(tiles + 1, 0);  // first differences of counts between tiles, then places to write
  for (const auto& piece : pieces) {
    for (const Strip& strip : piece) {
      ++next[strip.row * columns + strip.first];
      --next[strip.row * columns + strip.first + strip.count];
    }
  }
  for (int32_t tile = 0, count = 0, total = 0; tile < tiles; ++tile) {
    count += next[tile];
    bins.starts[tile] = next[tile] = total;
    total += count;
    bins.starts[tile + 1] = total;
  }
  std::fill(bins.spans, bins.spans + 2 * screen.num, 0);
  int32_t slot = 0;
  for (const auto& piece : pieces) {
    for (const Strip& strip : piece) {
      int32_t* span = bins.spans + 2 * strip.gaussian;
      if (span[1] == 0) span[0] = slot;
      for (int32_t k = 0; k < strip.count; ++k, ++slot) {
        const int32_t place = next[strip.row * columns + strip.first + k]++;
        bins.ids[place] = strip.gaussian;
        bins.slots[place] = slot;
      }
      span[1] = slot;
    }
  }
}

}  // namespace bags
