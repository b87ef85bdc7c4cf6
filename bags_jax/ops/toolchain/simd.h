// Vectors of floats, by the extensions that GCC and Clang share: AVX, AVX-512, NEON registers, or plain code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace bags {

constexpr int kLanes = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));  // result of a comparison: -1 where true, 0 elsewhere

// The widest vectors of this CPU, for loops that are not bound to eight pixels. V is Floats or WideFloats.
#if defined(__AVX512F__)
constexpr int kWideLanes = 16;
#else
constexpr int kWideLanes = kLanes;
#endif
typedef float WideFloats __attribute__((vector_size(4 * kWideLanes)));

template <typename V = Floats>
inline V Splat(float x) {
  return V{} + x;
}

template <typename V>
inline V Max(V a, V b) {
  return a > b ? a : b;
}

template <typename V>
inline V Min(V a, V b) {
  return a < b ? a : b;
}

template <typename V = Floats>
inline V Load(const float* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <typename V>
inline void Store(float* to, V x) {
  std::memcpy(to, &x, sizeof x);
}

// Returns a mask: bit k is lane k of a comparison.
inline uint32_t Bits(Ints mask) {
#if defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int k = 0; k < kLanes; ++k) bits |= (mask[k] & 1u) << k;
  return bits;
#endif
}

// Returns 2^-x for x >= 0 with a relative error under 2e-7; 2^-125 for x > 125.
//
// x = n - f with n an integer and |f| <= 1/2. Adding 1.5 * 2^23 leaves n in the low bits of the sum; a shift moves it
// into the exponent. 2^f is a polynomial of degree 5, fitted by least squares at Chebyshev nodes.
template <typename V>
inline V Exp2Minus(V x) {
  using Integers = decltype(x < x);
  const V magic = Splat<V>(12582912.0f);
  const V y = -Min(x, Splat<V>(125.0f));
  const V shifted = y + magic;
  const V f = y - (shifted - magic);
  V p = Splat<V>(1.321867248e-3f);
  p = p * f + 9.671697938e-3f;
  p = p * f + 5.550892952e-2f;
  p = p * f + 2.402223800e-1f;
  p = p * f + 6.931468559e-1f;
  p = p * f + 1.0f;
  return (V)((Integers)p + ((Integers)shifted << 23));
}

#if defined(__clang__) || __GNUC__ >= 12
#define BAGS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // other name in GCC before 12
#define BAGS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// Returns the sums over lanes of eight vectors as one vector, in three rounds that add neighbours.
inline Floats SumEach(const Floats* v) {
  Floats a[4], b[2];
  for (int k = 0; k < 4; ++k) {
    a[k] = BAGS_SHUFFLE(v[2 * k], v[2 * k + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
           BAGS_SHUFFLE(v[2 * k], v[2 * k + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int k = 0; k < 2; ++k) {
    b[k] = BAGS_SHUFFLE(a[2 * k], a[2 * k + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
           BAGS_SHUFFLE(a[2 * k], a[2 * k + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return BAGS_SHUFFLE(b[0], b[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         BAGS_SHUFFLE(b[0], b[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

}  // namespace bags
