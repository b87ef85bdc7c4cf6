// Structural similarity and its gradient as one XLA custom call. cpp_build.py compiles it, binding.py calls it.
//
// Results depend on the arguments alone, bit for bit, not on the number of threads.

#include "ssim.h"

#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bags {
namespace {

using FloatsIn = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

constexpr int64_t kRowsAtOnce = 16;  // with the ten rows around them they fit the L2 cache

ffi::Error CompareImages(ffi::ThreadPool pool, FloatsIn x, FloatsIn y, ffi::Buffer<ffi::PRED> valid, FloatsIn taps,
                         float c1, float c2, FloatsOut sums, FloatsOut d_x, FloatsOut slopes) {
  const auto size = x.dimensions();
  const auto count = x.element_count();
  if (size.size() != 3 || y.element_count() != count || d_x->element_count() != count) {
    return ffi::Error::InvalidArgument("image, target and gradient need the same size");
  }
  const Pictures in{size[0], size[1], size[2], x.typed_data(), y.typed_data(), valid.typed_data()};
  if (static_cast<int64_t>(valid.element_count()) != in.height * in.width || taps.element_count() != kTaps ||
      static_cast<int64_t>(sums->element_count()) != in.height ||
      static_cast<int64_t>(slopes->element_count()) != kSlopes * in.height * in.pitch()) {
    return ffi::Error::InvalidArgument("arrays do not have the sizes that the images need");
  }
  Window window{{}, c1, c2};
  std::copy(taps.typed_data(), taps.typed_data() + kTaps, window.taps);
  const int64_t num_blocks = (in.height + kRowsAtOnce - 1) / kRowsAtOnce;
  const auto for_each_block = [&](auto&& body) {
    ParallelFor(pool, num_blocks, [&](int64_t block) {
      body(block * kRowsAtOnce, std::min(in.height, (block + 1) * kRowsAtOnce));
    });
  };
  for_each_block([&](int64_t first, int64_t stop) {
    CompareRows(window, in, first, stop, sums->typed_data(), slopes->typed_data());
  });
  for_each_block([&](int64_t first, int64_t stop) {
    GradientOfRows(window, in, slopes->typed_data(), first, stop, d_x->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace bags

XLA_FFI_DEFINE_HANDLER_SYMBOL(bags_jax_ssim, bags::CompareImages,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<bags::FloatsIn>()
                                  .Arg<bags::FloatsIn>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<bags::FloatsIn>()
                                  .Attr<float>("c1")
                                  .Attr<float>("c2")
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
