// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "conv2d/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define PRODUCTS(T, S)              \
  FF_KERNEL(conv2d_fwd<T, S>)       \
  FF_KERNEL(conv2d_bwd_input<T, S>) \
  FF_KERNEL(conv2d_bwd_weight<T, S>)

FF_KERNELS_BEGIN(conv2d)
PRODUCTS(float, float)
PRODUCTS(float, tf32)
PRODUCTS(double, double)
PRODUCTS(bf16, bf16)
PRODUCTS(f16, f16)
FF_KERNELS_END

}  // namespace ff::cuda
