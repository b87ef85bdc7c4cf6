// One XLA custom call for the CPU runs all kernels. It takes the buffers and attributes of the call that launches them
// on a GPU.
#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "machine.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

static std::map<std::string_view, emulator::Kernel>& kernels() {
  static std::map<std::string_view, emulator::Kernel> by_text;
  return by_text;
}

bool emulator::add(const Kernel& kernel, std::string_view text) { return kernels().emplace(text, kernel).second; }

// Output that a kernel does not write must not look like a result: floats become NaN, integers large numbers.
static void poison(ffi::AnyBuffer output) {
  std::memset(output.untyped_data(), output.element_type() == ffi::F32 ? 0xff : 0xa5, output.size_bytes());
}

static ffi::Error emulate(ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view name, std::string_view,
                          std::string_view text, int32_t grid_x, int32_t grid_y, int32_t, int32_t block_x, int32_t,
                          int32_t, int32_t) {
  const auto found = kernels().find(text);
  if (found == kernels().end() || found->second.name != name)
    return ffi::Error::InvalidArgument("no kernel " + std::string(name) + " of this text");
  const emulator::Kernel& kernel = found->second;
  static std::mutex one_at_a_time;  // two devices of one process
  const std::lock_guard lock(one_at_a_time);
  std::vector<emulator::Range>& buffers = emulator::block.buffers;
  buffers.clear();
  const auto begin_of = [](ffi::AnyBuffer buffer) { return reinterpret_cast<uint64_t>(buffer.untyped_data()); };
  const auto pass = [&](ffi::AnyBuffer buffer) {
    buffers.push_back({begin_of(buffer), begin_of(buffer) + buffer.size_bytes()});
  };
  for (size_t i = 0; i < args.size(); ++i) pass(*args.get<ffi::AnyBuffer>(i));
  for (size_t i = 0; i < rets.size(); ++i) {
    const ffi::AnyBuffer output = **rets.get<ffi::AnyBuffer>(i);
    const auto has_its_memory = [&](const emulator::Range& operand) { return operand.begin == begin_of(output); };
    if (std::none_of(buffers.begin(), buffers.end(), has_its_memory)) poison(output);
    pass(output);
  }
  if (sizeof(void*) * buffers.size() != kernel.parameter_bytes)
    return ffi::Error::InvalidArgument("buffers of " + std::string(name));
  emulator::block.parameters.resize(kernel.parameter_bytes);
  for (size_t i = 0; i < buffers.size(); ++i)
    std::memcpy(&emulator::block.parameters[i * sizeof(void*)], &buffers[i].begin, sizeof(void*));
  try {
    emulator::run_grid(kernel, {uint32_t(grid_x), uint32_t(grid_y), 1}, block_x);
  } catch (const emulator::Fault& fault) {
    return ffi::Error::Internal(fault.what());
  }
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
