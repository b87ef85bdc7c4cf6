// An XLA FFI handler that launches PTX through the CUDA driver, the documented way to call a kernel from an XLA
// program. It takes the attributes of XLA's own PTX call, so one function builds both calls (cuda_launch.py). It
// compiles without a CUDA toolkit: the few functions of the driver are declared here and looked up at first use.
#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

using Result = int;  // CUresult; 0 is success
using Context = struct ContextTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;
using Stream = struct StreamTag*;

struct Driver {
  Result (*context)(Stream, Context*);
  Result (*enter)(Context);
  Result (*leave)(Context*);
  Result (*load)(Module*, const void*);
  Result (*function)(Function*, Module, const char*);
  Result (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**,
                   void**);
  Result (*describe)(Result, const char**);
  bool complete = false;
};

static Driver find_driver() {
  Driver driver{};
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return driver;
  const auto find = [&](auto& pointer, const char* name) {
    pointer = reinterpret_cast<std::decay_t<decltype(pointer)>>(dlsym(library, name));
    return pointer != nullptr;
  };
  driver.complete = find(driver.context, "cuStreamGetCtx") && find(driver.enter, "cuCtxPushCurrent_v2") &&
                    find(driver.leave, "cuCtxPopCurrent_v2") && find(driver.load, "cuModuleLoadData") &&
                    find(driver.function, "cuModuleGetFunction") && find(driver.launch, "cuLaunchKernel") &&
                    find(driver.describe, "cuGetErrorString");
  return driver;
}

static const Driver& driver() {
  static const Driver found = find_driver();
  return found;
}

static ffi::Error failure(const char* what, Result result) {
  const char* text = nullptr;
  driver().describe(result, &text);
  return ffi::Error::Internal(std::string(what) + ": " + (text ? text : "unknown error"));
}

// Makes the context (GPU) of a stream current for its lifetime: with several GPUs another one may be current.
struct Within {
  explicit Within(Stream stream) {
    result = driver().context(stream, &context);
    if (!result) result = driver().enter(context);
  }
  ~Within() {
    Context left = nullptr;
    if (!result) driver().leave(&left);
  }
  Within(const Within&) = delete;

  Context context = nullptr;
  Result result = 0;
};

// Loads a kernel once per context: the driver translates the text then. The first line of a text is its fingerprint.
static ffi::Error load(Context context, std::string_view ptx, std::string_view name, Function* function) {
  static std::mutex mutex;
  static std::map<std::tuple<Context, std::string, std::string>, Function> loaded;
  const std::lock_guard lock(mutex);
  Function& found = loaded[{context, std::string(ptx.substr(0, ptx.find('\n'))), std::string(name)}];
  if (!found) {
    Module module = nullptr;
    Result result = driver().load(&module, std::string(ptx).c_str());
    if (result) return failure("cuModuleLoadData", result);
    result = driver().function(&found, module, std::string(name).c_str());
    if (result) return failure("cuModuleGetFunction", result);
  }
  *function = found;
  return ffi::Error::Success();
}

static ffi::Error launch(Stream stream, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view name,
                         std::string_view, std::string_view ptx, int32_t grid_x, int32_t grid_y, int32_t grid_z,
                         int32_t block_x, int32_t block_y, int32_t block_z, int32_t shared_mem_bytes) {
  if (!driver().complete) return ffi::Error::Internal("libcuda.so.1 cannot be loaded: is the NVIDIA driver installed?");
  const Within within(stream);
  if (within.result) return failure("cannot enter the context of the stream", within.result);
  Function function = nullptr;
  if (ffi::Error error = load(within.context, ptx, name, &function); error.failure()) return error;
  std::vector<void*> buffers;
  for (size_t i = 0; i < args.size(); ++i) buffers.push_back(args.get<ffi::AnyBuffer>(i)->untyped_data());
  for (size_t i = 0; i < rets.size(); ++i) buffers.push_back((*rets.get<ffi::AnyBuffer>(i))->untyped_data());
  std::vector<void*> parameters;
  for (void*& buffer : buffers) parameters.push_back(&buffer);
  const Result result = driver().launch(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_mem_bytes,
                                        stream, parameters.data(), nullptr);
  return result ? failure("cuLaunchKernel", result) : ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    LaunchPtx, launch,
    ffi::Ffi::Bind()
        .Ctx<ffi::PlatformStream<Stream>>()
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
