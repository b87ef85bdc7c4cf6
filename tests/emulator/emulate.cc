// All kernels behind one XLA custom call for the CPU: its buffers and attributes are those of the call that launches them on
// a GPU. blend.cu is compiled once for each number of channels, blur.cu for each stride, as they are for the GPU.
#include "cuda_emulator.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "device.cuh"
#include "xla/ffi/api/ffi.h"

namespace binning {
#include "binning.cu"
}
#define CHANNELS 1
namespace blend_1 {
#include "blend.cu"
}
#undef CHANNELS
#define CHANNELS 3
namespace blend_3 {
#include "blend.cu"
}
#undef CHANNELS
#define CHANNELS 4
namespace blend_4 {
#include "blend.cu"
}
#undef CHANNELS
#define CHANNELS 8
namespace blend_8 {
#include "blend.cu"
}

#define STRIDE 1
namespace blur_1 {
#include "blur.cu"
}
#undef STRIDE
#define STRIDE 2
namespace blur_2 {
#include "blur.cu"
}
#undef STRIDE
#define STRIDE 3
namespace blur_3 {
#include "blur.cu"
}
#undef STRIDE
#define STRIDE 4
namespace blur_4 {
#include "blur.cu"
}

namespace ffi = xla::ffi;

using Buffers = std::vector<void*>;

struct Kernel {
  size_t num_buffers;
  std::function<void(const Buffers&)> run;
};

template <typename... Pointers, size_t... I>
Kernel wrap(void (*kernel)(Pointers...), std::index_sequence<I...>) {
  return {sizeof...(Pointers), [kernel](const Buffers& b) { kernel(static_cast<Pointers>(b[I])...); }};
}

template <typename... Pointers>
Kernel wrap(void (*kernel)(Pointers...)) {
  return wrap(kernel, std::index_sequence_for<Pointers...>());
}

#define BOTH(file) {#file "/blend_forward", wrap(file::blend_forward)}, {#file "/blend_backward", wrap(file::blend_backward)}
#define BLUR(file)                                                                                          \
  {#file "/filter_rows", wrap(file::filter_rows)}, {#file "/logit_gradients", wrap(file::logit_gradients)}, \
      {#file "/slab_gradients", wrap(file::slab_gradients)}
#define BINNING(name) {"binning/" #name, wrap(binning::name)}

static const std::map<std::string, Kernel, std::less<>> kKernels = {
    BINNING(count_tiles), BINNING(sum_blocks), BINNING(scan_blocks), BINNING(expand_pairs_u16), BINNING(expand_pairs_u32),
    BINNING(find_ranges_u16), BINNING(find_ranges_u32), BINNING(sum_slots),
    BOTH(blend_1), BOTH(blend_3), BOTH(blend_4), BOTH(blend_8), BLUR(blur_1), BLUR(blur_2), BLUR(blur_3), BLUR(blur_4)};

// What a kernel does not write must not look like a result: floats are NaN, integers far below 0 or in the middle.
static void poison(ffi::AnyBuffer output) {
  std::memset(output.untyped_data(), output.element_type() == ffi::F32 ? 0xff : 0xa5, output.size_bytes());
}

static ffi::Error emulate(ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view name, std::string_view,
                          std::string_view, int32_t grid_x, int32_t grid_y, int32_t, int32_t block_x, int32_t, int32_t,
                          int32_t) {
  const auto found = kKernels.find(name);
  if (found == kKernels.end()) return ffi::Error::InvalidArgument("no kernel " + std::string(name));
  Buffers buffers;
  for (size_t i = 0; i < args.size(); ++i) buffers.push_back(args.get<ffi::AnyBuffer>(i)->untyped_data());
  for (size_t i = 0; i < rets.size(); ++i) {
    const ffi::AnyBuffer output = **rets.get<ffi::AnyBuffer>(i);
    if (std::count(buffers.begin(), buffers.end(), output.untyped_data()) == 0) poison(output);  // else an operand's memory
    buffers.push_back(output.untyped_data());
  }
  if (buffers.size() != found->second.num_buffers) return ffi::Error::InvalidArgument("buffers of " + std::string(name));
  static std::mutex one_at_a_time;  // two devices of one process
  const std::lock_guard lock(one_at_a_time);
  emulator::run_grid({unsigned(grid_x), unsigned(grid_y), 1}, block_x, [&] { found->second.run(buffers); });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Emulate, emulate,
    ffi::Ffi::Bind()
        .RemainingArgs()
        .RemainingRets()
        .Attr<std::string_view>("name")
        .Attr<std::string_view>("kernel_type")
        .Attr<std::string_view>("kernel_data")
        .Attr<int32_t>("grid_x")
        .Attr<int32_t>("grid_y")
        .Attr<int32_t>("grid_z")
        .Attr<int32_t>("block_x")
        .Attr<int32_t>("block_y")
        .Attr<int32_t>("block_z")
        .Attr<int32_t>("shared_mem_bytes"));
