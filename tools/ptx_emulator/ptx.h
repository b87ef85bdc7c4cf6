// The instructions of PTX that the kernels use (NVIDIA, PTX ISA): one function for each, with the name of the
// instruction without its types, which are template arguments. translate.py writes the calls.
//
// Compiled with -ffp-contract=off (rounds where PTX rounds), -fwrapv (integers wrap) and -fno-operator-names (`and` is
// a name). Instructions with .approx are as exact as the C library.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

using b16 = uint16_t;
using b32 = uint32_t;
using b64 = uint64_t;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using pred = bool;

template <typename To, typename From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// Reads a register or constant of another type: between integers the value is kept, between float and integer the bits.
template <typename To, typename From>
To as(From value) {
  if constexpr (std::is_floating_point_v<To> != std::is_floating_point_v<From>) return bits<To>(value);
  else return static_cast<To>(value);
}

template <typename Register, typename T>
void set(Register& to, T value) {
  to = as<Register>(value);
}

#define OF_ONE(name, expression)  \
  template <typename T, typename A> \
  T name(A first) {               \
    const T a = as<T>(first);     \
    return T(expression);         \
  }
#define OF_TWO(name, expression)                     \
  template <typename T, typename A, typename B>      \
  auto name(A first, B second) {                     \
    const T a = as<T>(first), b = as<T>(second);     \
    return expression;                               \
  }
#define OF_THREE(name, expression)                                      \
  template <typename T, typename A, typename B, typename C>             \
  T name(A first, B second, C third) {                                  \
    const T a = as<T>(first), b = as<T>(second), c = as<T>(third);      \
    return T(expression);                                               \
  }

// Integers.
OF_TWO(add, T(a + b))
OF_TWO(sub, T(a - b))
OF_TWO(div, T(a / b))
OF_TWO(rem, T(a % b))
OF_TWO(mul_lo, T(a * b))
OF_TWO(mul_hi, T(int64_t(a) * int64_t(b) >> 32))  // of 32 bits
OF_THREE(mad_lo, a * b + c)
OF_TWO(and, T(a & b))
OF_TWO(or, T(a | b))
OF_TWO(xor, T(a ^ b))

template <typename T, typename A, typename B>
auto mul_wide(A a, B b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, s64, u64>;
  return Wide(as<T>(a)) * Wide(as<T>(b));
}

template <typename T, typename A>
T not(A value) {
  if constexpr (std::is_same_v<T, pred>) return !value;
  else return ~as<T>(value);
}

// Shifts by more than the number of bits give 0, or the sign.
template <typename T, typename A>
T shl(A value, u32 count) {
  return count < 8 * sizeof(T) ? T(as<T>(value) << count) : T(0);
}

template <typename T, typename A>
T shr(A value, u32 count) {
  constexpr u32 last = 8 * sizeof(T) - 1;
  if (count > last && std::is_unsigned_v<T>) return T(0);
  return T(as<T>(value) >> std::min(count, last));
}

template <typename T>
T brev(T value) {
  T result = 0;
  for (size_t i = 0; i < 8 * sizeof(T); ++i) result |= (value >> i & 1) << (8 * sizeof(T) - 1 - i);
  return result;
}

template <typename T, typename A>
u32 bfind_shiftamt(A value) {  // of 32 unsigned bits
  return value ? __builtin_clz(as<u32>(value)) : ~0u;
}

// Replaces `length` bits of `to` from bit `first` on by the lowest bits of `from`; both numbers are below 32.
template <typename T>
u32 bfi(u32 from, u32 to, u32 first, u32 length) {
  const u32 mask = ((1u << length) - 1) << first;
  return (from << first & mask) | (to & ~mask);
}

// Floats.
OF_TWO(add_rn, T(a + b))
OF_TWO(sub_rn, T(a - b))
OF_TWO(mul_rn, T(a * b))
OF_TWO(div_rn, T(a / b))
OF_THREE(fma_rn, std::fma(a, b, c))
OF_ONE(sqrt_rn, std::sqrt(a))
OF_ONE(rcp_rn, 1 / a)
OF_ONE(rcp_approx_ftz, 1 / a)
OF_ONE(ex2_approx_ftz, std::exp2(a))
OF_ONE(lg2_approx, std::log2(a))
OF_TWO(div_approx, T(a / b))

template <typename T>
T fma_rm(T a, T b, T c) {  // rounded down; a product of two float32 is exact in float64
  const double product = double(a) * b, sum = product + c, part = sum - product;
  const double lost = (product - (sum - part)) + (c - part);
  const T nearest = T(sum);
  const bool above = nearest > sum || (nearest == sum && lost < 0);
  return above ? std::nextafter(nearest, -std::numeric_limits<T>::infinity()) : nearest;
}

// Both.
OF_ONE(mov, a)
OF_ONE(neg, -a)
OF_ONE(abs, std::abs(a))
OF_TWO(setp_eq, a == b)
OF_TWO(setp_ne, a != b)  // NaN: of integers only
OF_TWO(setp_neu, !(a == b))
OF_TWO(setp_lt, a < b)
OF_TWO(setp_le, a <= b)
OF_TWO(setp_gt, a > b)
OF_TWO(setp_ge, a >= b)
OF_TWO(setp_ltu, !(a >= b))
OF_TWO(setp_leu, !(a > b))
OF_TWO(setp_gtu, !(a <= b))
OF_TWO(setp_geu, !(a < b))

template <typename T, typename A, typename B>
T min(A a, B b) {
  if constexpr (std::is_same_v<T, f32>) return std::fmin(a, b);  // of a number and NaN, the number
  else return std::min(as<T>(a), as<T>(b));
}

template <typename T, typename A, typename B>
T max(A a, B b) {
  if constexpr (std::is_same_v<T, f32>) return std::fmax(a, b);
  else return std::max(as<T>(a), as<T>(b));
}

template <typename T, typename A, typename B>
T selp(A a, B b, bool first) {
  return first ? as<T>(a) : as<T>(b);
}

// Conversions, `To` from `From`.
template <typename To, typename From, typename A>
To cvt(A value) {
  return To(as<From>(value));
}

template <typename To, typename From, typename A>
To cvt_rn(A value) {
  return To(as<From>(value));
}

template <typename To, typename From>
To cvt_rzi(From value) {  // to integers: rounds toward 0, clamps to the range, NaN gives 0
  if (std::isnan(value)) return 0;
  return To(std::clamp<double>(std::trunc(value), std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
}

template <typename To, typename From>
To cvt_rmi(From value) {
  return std::floor(value);
}

template <typename To, typename From>
To cvt_rpi(From value) {
  return std::ceil(value);
}

template <typename To, typename From>
To cvt_sat(From value) {
  return value > 0 ? std::min(value, From(1)) : From(0);
}

inline void unpack(b64 from, b32& low, b32& high) {
  low = b32(from);
  high = b32(from >> 32);
}

inline b64 pack(b32 low, b32 high) { return b64(high) << 32 | low; }

// Memory. Addresses of parameters and of shared memory start at 0.
template <typename T>
T read(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T, typename A>
void write(char* to, A value) {
  const T as_stored = as<T>(value);
  std::memcpy(to, &as_stored, sizeof(T));
}

// The address of a vector must be a multiple of its size.
inline void aligned(u64 address, u64 size) {
  if (address % size == 0) return;
  emulator::fail("address " + emulator::hex(address) + " is not aligned to " + std::to_string(size) + " bytes");
}

template <typename T>
u64 cvta_to_global(u64 address) {
  return address;
}

template <typename T>
T ld_param(u64 address) {
  return read<T>(emulator::block.parameters.data() + address);
}

template <typename T>
T ld_global(u64 address) {
  return read<T>(emulator::global(address, sizeof(T)));
}

template <typename T>
T ld_shared(u64 address) {
  return read<T>(emulator::shared(address, sizeof(T), false));
}

template <typename T, typename A>
void st_global(u64 address, A value) {
  write<T>(emulator::global(address, sizeof(T)), value);
}

template <typename T, typename A>
void st_shared(u64 address, A value) {
  write<T>(emulator::shared(address, sizeof(T), true), value);
}

template <typename T>
T atom_global_add(u64 address, T value) {
  char* place = emulator::global(address, sizeof(T));
  const T before = read<T>(place);
  write<T>(place, before + value);
  return before;
}

// Threads.
inline u32 tid_x() { return emulator::block.current; }
inline u32 ctaid_x() { return emulator::block.index.x; }
inline u32 ctaid_y() { return emulator::block.index.y; }
inline u32 nctaid_x() { return emulator::block.grid.x; }

inline void all_lanes(u32 mask) {
  if (mask != ~0u) emulator::fail("lanes " + emulator::hex(mask) + " of a warp only");
}

inline void bar_sync(int) { emulator::sync_block(); }

inline void bar_warp_sync(u32 mask) {
  all_lanes(mask);
  emulator::sync_warp();
}

template <typename T>
bool bar_red_or(int, bool value) {
  const u32* all = emulator::exchange_in_block(value);
  return std::any_of(all, all + emulator::block.size.x, [](u32 x) { return x != 0; });
}

template <typename T>
u32 vote_sync_ballot(bool value, u32 mask) {
  all_lanes(mask);
  const u32* lanes = emulator::exchange_in_warp(value);
  u32 ballot = 0;
  for (int i = 0; i < emulator::kWarp; ++i) ballot |= lanes[i] << i;
  return ballot;
}

template <typename T>
bool vote_sync_any(bool value, u32 mask) {
  return vote_sync_ballot<b32>(value, mask) != 0;
}

// Returns the value of lane `place` if `within`, else of the own lane.
template <typename A>
u32 shuffle(bool& taken, A value, s32 place, u32 mask, bool within) {
  all_lanes(mask);
  const s32 lane = tid_x() % emulator::kWarp;
  taken = within;
  return emulator::exchange_in_warp(as<u32>(value))[within ? place : lane];
}

struct Segment {  // lanes that a shuffle may read, from its third operand
  s32 lane = tid_x() % emulator::kWarp, mask, first, last;
  explicit Segment(u32 clamp) : mask(clamp >> 8 & 31), first(lane & mask), last(first | (clamp & 31 & ~mask)) {}
};

template <typename T, typename A>
u32 shfl_sync_up(bool& taken, A value, u32 step, u32 clamp, u32 mask) {
  const Segment segment(clamp);
  const s32 place = segment.lane - s32(step & 31);
  return shuffle(taken, value, place, mask, place >= segment.last);
}

template <typename T, typename A>
u32 shfl_sync_bfly(bool& taken, A value, u32 flip, u32 clamp, u32 mask) {
  const Segment segment(clamp);
  const s32 place = segment.lane ^ s32(flip & 31);
  return shuffle(taken, value, place, mask, place <= segment.last);
}

template <typename T, typename A>
u32 shfl_sync_idx(bool& taken, A value, u32 source, u32 clamp, u32 mask) {
  const Segment segment(clamp);
  const s32 place = segment.first | (s32(source & 31) & ~segment.mask);
  return shuffle(taken, value, place, mask, place <= segment.last);
}
