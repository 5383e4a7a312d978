// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds. Of double only the tiles that 48 KiB of shared memory hold.
#include "separable_conv/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define FORWARD(T, k, s) FF_KERNEL(depthwise_tile<T, k, s>)
#define BACKWARD(T, k, s) FF_KERNEL(depthwise_bwd_tile<T, k, s>)
#define EVERY_TILE(T) \
  FORWARD(T, 3, 1)    \
  FORWARD(T, 3, 2)    \
  FORWARD(T, 5, 1)    \
  FORWARD(T, 5, 2)    \
  BACKWARD(T, 3, 1)   \
  BACKWARD(T, 3, 2)   \
  BACKWARD(T, 5, 1)   \
  BACKWARD(T, 5, 2)
#define ANY(T)                               \
  FF_KERNEL(depthwise_any<T, 256>)           \
  FF_KERNEL(depthwise_bwd_input_any<T, 256>) \
  FF_KERNEL(depthwise_bwd_weight_any<T>)
#define PRODUCTS(T, S)                  \
  FF_KERNEL(pointwise_fwd<T, S>)        \
  FF_KERNEL(pointwise_bwd_weight<T, S>) \
  FF_KERNEL(pointwise_bwd_input<T, S>)
#define BLOCK(T, S, k, s) FF_KERNEL(separable_tile<T, S, k, s>)
#define EVERY_BLOCK(T, S) \
  BLOCK(T, S, 3, 1)       \
  BLOCK(T, S, 3, 2)       \
  BLOCK(T, S, 5, 1)

FF_KERNELS_BEGIN(separable_conv)
EVERY_TILE(float)
EVERY_TILE(bf16)
EVERY_TILE(f16)
FORWARD(double, 3, 1)
FORWARD(double, 5, 1)
BACKWARD(double, 3, 1)
BACKWARD(double, 3, 2)
ANY(float)
ANY(double)
ANY(bf16)
ANY(f16)
PRODUCTS(float, float)
PRODUCTS(float, tf32)
PRODUCTS(double, double)
PRODUCTS(bf16, bf16)
PRODUCTS(f16, f16)
EVERY_BLOCK(float, float)
EVERY_BLOCK(float, tf32)
EVERY_BLOCK(bf16, bf16)
EVERY_BLOCK(f16, f16)
BLOCK(double, double, 3, 1)
BLOCK(double, double, 5, 1)
FF_KERNELS_END

}  // namespace ff::cuda
