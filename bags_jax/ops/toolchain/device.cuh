// Constants and functions that the kernel files share.
//
// Compiled with -fmad=false: multiplication and addition are one instruction only where the code says fmaf. So two
// kernels that count the same tiles never differ in the last bit. cuda_build.py defines MIN_ALPHA, MAX_ALPHA,
// MIN_TRANSMITTANCE, TILE (side of a tile, px) and COLORS from ops/limits.py.
#pragma once

#define KERNEL extern "C" __global__ void

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

__device__ __forceinline__ float exp2_approx(float x) {  // one instruction; 2 ulp
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {  // one instruction; 1 ulp
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
