// A fake CUDA driver with two GPUs, built as libcuda.so.1 together with the launcher that is tested with it.
#include "launcher.cc"

struct ContextTag {};
struct ModuleTag {
  Context context;
};
struct FunctionTag {
  Context context;
};
struct StreamTag {
  Context context;
};

static ContextTag gpus[2];
static StreamTag streams[2] = {{&gpus[0]}, {&gpus[1]}};
static std::vector<Context> current = {&gpus[0]};
static int loads = 0, launches = 0;

extern "C" {
Result cuStreamGetCtx(Stream stream, Context* context) { return *context = stream->context, 0; }
Result cuCtxGetCurrent(Context* context) { return *context = current.back(), 0; }
Result cuCtxPushCurrent_v2(Context context) { return current.push_back(context), 0; }
Result cuCtxPopCurrent_v2(Context* context) { return *context = current.back(), current.pop_back(), 0; }
Result cuModuleLoadData(Module* module, const void*) { return ++loads, *module = new ModuleTag{current.back()}, 0; }
Result cuModuleGetFunction(Function* function, Module module, const char*) {
  return *function = new FunctionTag{module->context}, 0;
}
Result cuLaunchKernel(Function function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                      Stream stream, void**, void**) {
  ++launches;
  return function->context == stream->context && current.back() == stream->context ? 0 : 400;
}
Result cuGetErrorString(Result, const char** text) { return *text = "a kernel of another context", 0; }

// Launches a kernel on the stream of a GPU. Returns whether that succeeded and the first GPU is current again.
int launch_on(int gpu, const char* ptx) {
  const XLA_FFI_Args args{};
  const XLA_FFI_Rets rets{};
  const ffi::Error error = launch(&streams[gpu], {&args, 0}, {&rets, 0}, "kernel", "ptx", ptx, 1, 1, 1, 32, 1, 1, 0);
  return error.success() && current.size() == 1;
}
int count_loads() { return loads; }
int count_launches() { return launches; }
}
