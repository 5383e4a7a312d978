// SPDX-License-Identifier: Apache-2.0
// CUDA's keywords, variables and functions as the kernels use them, on the host: one thread at a time, in order.
#pragma once
#include <math.h>
#include <string.h>

#define __global__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Dim {
  unsigned x;
};
static Dim blockIdx, threadIdx, gridDim;

static inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

namespace ff::cuda {
static inline float f16_bits_to_float(unsigned short bits) {
  _Float16 x;
  memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
static inline unsigned short float_to_f16_bits(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  unsigned short bits;
  memcpy(&bits, &y, 2);
  return bits;
}
}  // namespace ff::cuda
