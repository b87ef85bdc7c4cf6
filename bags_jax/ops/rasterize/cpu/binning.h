// Which Gaussians touch which tiles, front to back: the rules of tiles.py, without its detours around static shapes.
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

constexpr float kSlackPx = 1e-3f;  // intervals are widened so that rounding never loses a pixel

struct Grid {
  int32_t width, height;  // image, px
  int32_t tile;           // side of a tile, px

  int32_t columns() const { return (width + tile - 1) / tile; }
  int32_t rows() const { return (height + tile - 1) / tile; }
};

// N Gaussians on the screen, as struct Projected has them.
struct Screen {
  const float* means;   // [N, 2]
  const float* covs;    // [N, 3]
  const float* radii;   // [N, 2]
  const float* depths;  // [N]
  int64_t num;

  bool visible(int64_t n) const { return radii[2 * n] > 0 && radii[2 * n + 1] > 0; }
};

// Consecutive tiles of one row of tiles that one Gaussian touches.
struct Strip {
  int32_t gaussian, row, first, count;
};

struct Range {
  int32_t first, stop;
};

// Tiles of which some pixel centre lies between low and high; centres are half a pixel inside the border of a tile.
inline Range TilesBetween(float low, float high, int32_t tile, int32_t limit) {
  const float first = std::ceil((low + 0.5f) / tile) - 1.0f, stop = std::floor((high - 0.5f) / tile) + 1.0f;
  const float most = static_cast<float>(limit);  // clipped before the cast, which is undefined beyond 2^31
  return {static_cast<int32_t>(std::fmin(std::fmax(first, 0.0f), most)),
          static_cast<int32_t>(std::fmin(std::fmax(stop, 0.0f), most))};
}

// Appends the strips of one Gaussian. The right border of an ellipse is a concave function of y: its maximum over a row
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

// Bits of a float that order like the float when read as an unsigned number.
inline uint32_t OrderedBits(float x) {
  x += 0.0f;  // -0 becomes +0
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// Numbers of the visible Gaussians by depth, equal ones by number: a radix sort, 11 bits a round.
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

// The strips of all visible Gaussians, front to back, in pieces that several threads made.
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

inline int64_t CountPairs(const std::vector<std::vector<Strip>>& pieces) {
  int64_t total = 0;
  for (const auto& piece : pieces) {
    for (const Strip& strip : piece) total += strip.count;
  }
  return total;
}

inline int32_t Saturate(int64_t count) {
  return static_cast<int32_t>(std::min<int64_t>(count, std::numeric_limits<int32_t>::max()));
}

// Pairs of tile and Gaussian by tile, front to back. A pair also has a slot: its place when pairs are listed by
// Gaussian instead, where the gradients of one Gaussian lie side by side.
struct Bins {
  int32_t* ids;     // [M] Gaussian of a pair
  int32_t* slots;   // [M] slot of a pair
  int32_t* starts;  // [T + 1] tile t owns the pairs starts[t] : starts[t + 1]
  int32_t* spans;   // [N, 2] first slot of a Gaussian, and the one after its last
  int64_t room;
};

// Cuts the strips to the room that there is: what lies farthest back is left out.
inline void CutToRoom(std::vector<std::vector<Strip>>& pieces, int64_t room) {
  for (auto& piece : pieces) {
    for (Strip& strip : piece) {
      strip.count = static_cast<int32_t>(std::min<int64_t>(strip.count, room));
      room -= strip.count;
    }
  }
}

// A counting sort of the pairs by tile: they come front to back and stay so.
inline void FillBins(const std::vector<std::vector<Strip>>& pieces, const Screen& screen, const Grid& grid, Bins bins) {
  const int32_t columns = grid.columns(), tiles = columns * grid.rows();
  std::vector<int32_t> next(tiles + 1, 0);  // first the change in count from a tile to the next, then where to write
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
        const int32_t pair = next[strip.row * columns + strip.first + k]++;
        bins.ids[pair] = strip.gaussian;
        bins.slots[pair] = slot;
      }
      span[1] = slot;
    }
  }
}

}  // namespace bags
