// SPDX-License-Identifier: Apache-2.0
// The template instances that nvcc builds, by the name that Python launches them under: the C++ expression as written.
// Each <family>/cuda.cu lists its own between FF_KERNELS_BEGIN and FF_KERNELS_END; csrc/families.inc lists the
// families.
#pragma once

#include "cuda/device.cuh"

namespace ff::cuda {

struct Kernel {
  const char* name;
  const void* function;
  int parameters;
};

template <class... Params>
Kernel instance(const char* name, void (*kernel)(Params...)) {
  static_assert(((sizeof(Params) == 8) && ...), "kernel parameters have 8 bytes each");
  return {name, reinterpret_cast<const void*>(kernel), sizeof...(Params)};
}

}  // namespace ff::cuda

#define FF_TEXT_OF(...) #__VA_ARGS__
#define FF_KERNELS_BEGIN(family)          \
  extern const Kernel family##_kernels[]; \
  const Kernel family##_kernels[] = {
#define FF_KERNEL(...) instance(FF_TEXT_OF(__VA_ARGS__), &__VA_ARGS__),
#define FF_KERNELS_END {nullptr, nullptr, 0}} \
  ;
