// The blur of a block of rows as XLA custom calls, forward and backward. cpp_build.py compiles it, binding.py calls it.
//
// Results depend on the arguments alone, bit for bit, not on the number of threads: one thread handles a kernel, and
// the gradient of the image is summed in pieces of a fixed number of rows, which are then summed in their order.

#include "blur.h"

#include <cstdint>
#include <utility>

#include "constant.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace bags {
namespace {

using FloatsIn = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

// Returns whether arrays have the sizes that kernels need.
bool Fits(const Kernels& kernels, int64_t slab, int64_t logits, int64_t image, int64_t moments) {
  if (kernels.side < 1 || kernels.stride < 1) return false;
  return slab == kernels.phases() * kColors * kernels.slab_rows() * kernels.columns() &&
         logits == kernels.side * kernels.side * kernels.count() &&
         image == kernels.stride * kernels.stride * kColors * kernels.count() &&
         moments == kBlurMoments * kernels.count();
}

template <typename Array>
int64_t Count(const Array& array) {
  return static_cast<int64_t>(array.element_count());
}

ffi::Error WrongSizes() { return ffi::Error::InvalidArgument("arrays do not have the sizes that the kernels need"); }

// Calls body with the stride as a compile-time constant.
template <typename F>
ffi::Error WithStride(int32_t stride, F&& body) {
  if (WithConstant(Strides(), stride, std::forward<F>(body))) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("no code for this stride");
}

ffi::Error FilterRows(ffi::ThreadPool pool, FloatsIn slab, FloatsIn logits, int32_t side, int32_t stride, float bound,
                      float floor, FloatsOut image, FloatsOut moments, FloatsOut normalizer) {
  const auto size = normalizer->dimensions();
  const Kernels kernels{size[0], size[1], side, stride};
  if (!Fits(kernels, Count(slab), Count(logits), Count(*image), Count(*moments))) return WrongSizes();
  const BlurIn in{slab.typed_data(), logits.typed_data()};
  const Filtered out{image->typed_data(), moments->typed_data(), normalizer->typed_data()};
  return WithStride(stride, [&](auto constant) {
    ParallelFor(pool, kernels.rows, [&](int64_t y) {
      ForEachGroup(kernels, [&](int64_t x, int64_t, auto whole) {
        FilterGroup<constant, whole>(kernels, {bound, floor}, in, out, y, x);
      });
    });
  });
}

// Sums, for each row of pixels of a slab, the pieces that contain the row, in their order.
void SumPieces(ffi::ThreadPool& pool, const Kernels& kernels, int64_t piece_rows, const float* pieces, float* d_slab) {
  const int64_t rows = piece_rows * kernels.stride + 2 * kernels.radius(), columns = kernels.columns();
  const int64_t num = (kernels.rows + piece_rows - 1) / piece_rows, planes = kernels.phases() * kColors;
  ParallelFor(pool, kernels.slab_rows(), [&](int64_t y) {
    for (int64_t plane = 0; plane < planes; ++plane) {
      float* sum = d_slab + (plane * kernels.slab_rows() + y) * columns;
      std::fill(sum, sum + columns, 0.0f);
      for (int64_t piece = 0; piece < num; ++piece) {
        const int64_t row = y - piece * piece_rows * kernels.stride;
        if (row < 0 || row >= rows) continue;
        const float* part = pieces + ((piece * planes + plane) * rows + row) * columns;
        for (int64_t x = 0; x < columns; ++x) sum[x] += part[x];
      }
    }
  });
}

ffi::Error FilterRowsGradient(ffi::ThreadPool pool, FloatsIn slab, FloatsIn logits, FloatsIn image, FloatsIn moments,
                              FloatsIn normalizer, FloatsIn d_image, FloatsIn d_moments, int32_t side, int32_t stride,
                              float bound, float floor, FloatsOut d_slab, FloatsOut d_logits, FloatsOut pieces) {
  const auto size = normalizer.dimensions();
  const Kernels kernels{size[0], size[1], side, stride};
  const BlurIn in{slab.typed_data(), logits.typed_data()};
  const FilteredIn filtered{image.typed_data(), moments.typed_data(), normalizer.typed_data()};
  const BlurCotangents cotangents{d_image.typed_data(), d_moments.typed_data()};
  if (!Fits(kernels, Count(slab), Count(logits), Count(d_image), Count(d_moments))) return WrongSizes();
  if (!Fits(kernels, Count(*d_slab), Count(*d_logits), Count(image), Count(moments))) return WrongSizes();
  const int64_t num = pieces->dimensions()[0], piece_size = Count(*pieces) / num;
  const int64_t piece_rows = (pieces->dimensions()[3] - 2 * kernels.radius()) / stride;
  if (num * piece_rows < kernels.rows || (num - 1) * piece_rows >= kernels.rows) return WrongSizes();
  return WithStride(stride, [&](auto constant) {
    ParallelFor(pool, num, [&](int64_t piece) {
      float* start = pieces->typed_data() + piece * piece_size;
      std::fill(start, start + piece_size, 0.0f);
      const Planes<float> d_read(start, piece_rows * stride + 2 * kernels.radius(), kernels.columns());
      const int64_t first = piece * piece_rows, stop = std::min(kernels.rows, first + piece_rows);
      for (int64_t y = first; y < stop; ++y) {
        ForEachGroup(kernels, [&](int64_t x, int64_t done, auto whole) {
          DifferentiateGroup<constant, whole>(kernels, {bound, floor}, in, filtered, cotangents,
                                              d_read.Moved((y - first) * stride, 0), d_logits->typed_data(), y, x, done);
        });
      }
    });
    SumPieces(pool, kernels, piece_rows, pieces->typed_data(), d_slab->typed_data());
  });
}

// The attributes of every call.
template <typename Binding>
auto WithSizes(Binding binding) {
  return std::move(binding)
      .template Attr<int32_t>("side")
      .template Attr<int32_t>("stride")
      .template Attr<float>("bound")
      .template Attr<float>("floor");
}

}  // namespace
}  // namespace bags

using bags::FloatsIn;
using FloatsRet = ffi::Buffer<ffi::F32>;

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    bags_jax_filter_rows, bags::FilterRows,
    bags::WithSizes(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<FloatsIn>().Arg<FloatsIn>())
        .Ret<FloatsRet>()
        .Ret<FloatsRet>()
        .Ret<FloatsRet>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bags_jax_filter_rows_gradient, bags::FilterRowsGradient,
                              bags::WithSizes(ffi::Ffi::Bind()
                                                  .Ctx<ffi::ThreadPool>()
                                                  .Arg<FloatsIn>()
                                                  .Arg<FloatsIn>()
                                                  .Arg<FloatsIn>()
                                                  .Arg<FloatsIn>()
                                                  .Arg<FloatsIn>()
                                                  .Arg<FloatsIn>()
                                                  .Arg<FloatsIn>())
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>()
                                  .Ret<FloatsRet>());
