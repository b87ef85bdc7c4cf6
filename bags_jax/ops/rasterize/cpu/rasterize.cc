// The CPU rasterizer as XLA custom calls: binning, blending and its gradient. cpp_build.py compiles it, binding.py
// calls it.
//
// Results depend on the arguments alone, bit for bit, not on the number of threads: one thread handles a tile, and the
// gradients of a Gaussian are stored per intersection and then summed in a fixed order.

#include <cstdint>
#include <utility>

#include "binning.h"
#include "blend.h"
#include "constant.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bags {
namespace {

constexpr int64_t kPiece = 1024;  // Gaussians that a thread takes at a time

using FloatsIn = ffi::Buffer<ffi::F32>;
using IntsIn = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using IntsOut = ffi::ResultBuffer<ffi::S32>;

// Calls body(n) for each of num Gaussians, in pieces.
template <typename F>
void ForEachGaussian(ffi::ThreadPool& pool, int64_t num, F&& body) {
  ParallelFor(pool, (num + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t stop = std::min(num, (piece + 1) * kPiece);
    for (int64_t n = piece * kPiece; n < stop; ++n) body(n);
  });
}

Screen MakeScreen(const FloatsIn& means, const FloatsIn& covs, const FloatsIn& radii, const FloatsIn& depths) {
  return {means.typed_data(), covs.typed_data(), radii.typed_data(), depths.typed_data(),
          static_cast<int64_t>(depths.element_count())};
}

ffi::Error Count(ffi::ThreadPool pool, FloatsIn means, FloatsIn covs, FloatsIn radii, FloatsIn depths, int32_t width,
                 int32_t height, int32_t tile, IntsOut total) {
  const Screen screen = MakeScreen(means, covs, radii, depths);
  const auto pieces = MakeStrips(screen, DepthOrder(screen), {width, height, tile}, pool);
  total->typed_data()[0] = Saturate(CountIntersections(pieces));
  return ffi::Error::Success();
}

ffi::Error Bin(ffi::ThreadPool pool, FloatsIn means, FloatsIn covs, FloatsIn radii, FloatsIn depths, int32_t width,
               int32_t height, int32_t tile, IntsOut ids, IntsOut slots, IntsOut starts, IntsOut spans,
               IntsOut totals) {
  const Screen screen = MakeScreen(means, covs, radii, depths);
  const Grid grid{width, height, tile};
  const int64_t capacity = static_cast<int64_t>(ids->element_count());
  auto pieces = MakeStrips(screen, DepthOrder(screen), grid, pool);
  const int64_t total = CountIntersections(pieces);
  if (total > capacity) CutToCapacity(pieces, capacity);
  FillBins(pieces, screen, grid, {ids->typed_data(), slots->typed_data(), starts->typed_data(), spans->typed_data()});
  totals->typed_data()[0] = Saturate(total);
  totals->typed_data()[1] = Saturate(std::max<int64_t>(total - capacity, 0));
  return ffi::Error::Success();
}

template <int kChannels>
void BlendTiles(ffi::ThreadPool& pool, const Grid& grid, const Record* records, const int32_t* ids,
                const int32_t* starts, float* colors, float* alphas) {
  ParallelFor(pool, static_cast<int64_t>(grid.columns()) * grid.rows(), [&](int64_t tile) {
    ForEachBlock(grid, static_cast<int32_t>(tile), [&](const Block& block) {
      BlendBlock<kChannels>(grid, block, records, ids, starts[tile], starts[tile + 1], colors, alphas);
    });
  });
}

template <int kChannels>
void DifferentiateTiles(ffi::ThreadPool& pool, const Grid& grid, const Record* records, const Bins& bins,
                        const Pixels& pixels, float* by_slot) {
  ParallelFor(pool, static_cast<int64_t>(grid.columns()) * grid.rows(), [&](int64_t tile) {
    ForEachBlock(grid, static_cast<int32_t>(tile), [&](const Block& block) {
      DifferentiateBlock<kChannels>(grid, block, records, bins, static_cast<int32_t>(tile), pixels, by_slot);
    });
  });
}

// Calls body with the number of channels as a compile-time constant. Python pads the features to one of `Channels`.
template <typename F>
ffi::Error WithChannels(int64_t channels, F&& body) {
  if (WithConstant(Channels(), channels, std::forward<F>(body))) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("no code for this number of channels");
}

ffi::Error Blend(ffi::ThreadPool pool, FloatsIn means, FloatsIn conics, FloatsIn opacities, FloatsIn features,
                 IntsIn ids, IntsIn starts, int32_t width, int32_t height, int32_t tile, FloatsOut colors,
                 FloatsOut alphas, FloatsOut records) {
  const int64_t channels = features.dimensions()[1];
  Record* record = reinterpret_cast<Record*>(records->typed_data());
  ForEachGaussian(pool, static_cast<int64_t>(opacities.element_count()), [&](int64_t n) {
    record[n] = MakeRecord(means.typed_data() + 2 * n, conics.typed_data() + 3 * n, opacities.typed_data()[n],
                           features.typed_data() + channels * n, static_cast<int>(channels));
  });
  return WithChannels(channels, [&](auto constant) {
    BlendTiles<constant>(pool, {width, height, tile}, record, ids.typed_data(), starts.typed_data(),
                         colors->typed_data(), alphas->typed_data());
  });
}

ffi::Error BlendGradient(ffi::ThreadPool pool, FloatsIn records, FloatsIn conics, IntsIn ids, IntsIn slots,
                         IntsIn starts, IntsIn spans, FloatsIn colors, FloatsIn alphas, FloatsIn d_colors,
                         FloatsIn d_alphas, int32_t width, int32_t height, int32_t tile, FloatsOut d_means,
                         FloatsOut d_conics, FloatsOut d_opacities, FloatsOut d_features, FloatsOut by_slot) {
  const Record* record = reinterpret_cast<const Record*>(records.typed_data());
  const Bins bins{ids.typed_data(), slots.typed_data(), starts.typed_data(), spans.typed_data()};
  const Pixels pixels{colors.typed_data(), alphas.typed_data(), d_colors.typed_data(), d_alphas.typed_data()};
  return WithChannels(d_features->dimensions()[1], [&](auto constant) {
    DifferentiateTiles<constant>(pool, {width, height, tile}, record, bins, pixels, by_slot->typed_data());
    ForEachGaussian(pool, static_cast<int64_t>(d_opacities->element_count()), [&](int64_t n) {
      const GradientRow out{d_means->typed_data() + 2 * n, d_conics->typed_data() + 3 * n,
                            d_opacities->typed_data() + n, d_features->typed_data() + constant * n};
      ReduceSlots<constant>(by_slot->typed_data(), bins.spans + 2 * n, conics.typed_data() + 3 * n, record[n].opacity,
                            out);
    });
  });
}

// The attributes of every call: sizes of the image and of a tile, px.
template <typename Binding>
auto WithGrid(Binding binding) {
  return std::move(binding).template Attr<int32_t>("width").template Attr<int32_t>("height").template Attr<int32_t>(
      "tile_size");
}

auto ScreenArguments() {
  return WithGrid(
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<FloatsIn>().Arg<FloatsIn>().Arg<FloatsIn>().Arg<FloatsIn>());
}

}  // namespace
}  // namespace bags

using bags::FloatsIn;
using bags::IntsIn;
using FloatsRet = ffi::Buffer<ffi::F32>;
using IntsRet = ffi::Buffer<ffi::S32>;

XLA_FFI_DEFINE_HANDLER_SYMBOL(bags_jax_count, bags::Count, bags::ScreenArguments().Ret<IntsRet>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bags_jax_bin, bags::Bin,
    bags::ScreenArguments().Ret<IntsRet>().Ret<IntsRet>().Ret<IntsRet>().Ret<IntsRet>().Ret<IntsRet>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bags_jax_blend, bags::Blend,
                              bags::WithGrid(ffi::Ffi::Bind()
                                                 .Ctx<ffi::ThreadPool>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<IntsIn>()
                                                 .Arg<IntsIn>())
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bags_jax_blend_gradient, bags::BlendGradient,
                              bags::WithGrid(ffi::Ffi::Bind()
                                                 .Ctx<ffi::ThreadPool>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<IntsIn>()
                                                 .Arg<IntsIn>()
                                                 .Arg<IntsIn>()
                                                 .Arg<IntsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>()
                                                 .Arg<FloatsIn>())
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>());
