// SPDX-License-Identifier: Apache-2.0
// Run-time values to template arguments, for cuda.cu files. A value without a kernel throws std::invalid_argument.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/device.cuh"

namespace ff::cuda {

// f(std::integral_constant<int, v>{}) for the v of kValues that equals `value`.
template <int... kValues, class F>
void switch_int(const char* name, int value, F&& f) {
  const bool hit = ((value == kValues && (f(std::integral_constant<int, kValues>{}), true)) || ...);
  if (!hit) throw std::invalid_argument(std::string(name) + ": no kernel for " + std::to_string(value));
}

// f(T{}) for the storage type of a dtype code (fastfer/cuda/loader.py).
template <class F>
void switch_dtype(int dtype, F&& f) {
  switch (dtype) {
    case 0: return f(float{});
    case 1: return f(double{});
    case 2: return f(bf16{});
    case 3: return f(f16{});
    default: throw std::invalid_argument("dtype: no kernel for " + std::to_string(dtype));
  }
}

}  // namespace ff::cuda
