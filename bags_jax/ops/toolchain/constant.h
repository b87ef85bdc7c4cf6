// Turns a number that is known at run time into a compile-time constant.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace bags {

// Calls body with the number as a std::integral_constant, if it is one of kNumbers. Returns whether it is.
template <int... kNumbers, typename F>
bool WithConstant(std::integer_sequence<int, kNumbers...>, int64_t number, F&& body) {
  return ((number == kNumbers && (body(std::integral_constant<int, kNumbers>()), true)) || ...);
}

}  // namespace bags
