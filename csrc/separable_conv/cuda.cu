// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds. Tiles of double at 5 x 5, stride 2, exceed 48 KiB of shared memory.
#include "separable_conv/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define TILED(T, k, s) FF_KERNEL(depthwise_tile<T, k, s>) FF_KERNEL(depthwise_bwd_tile<T, k, s>)
#define STORED(T)                                                                                                 \
  TILED(T, 3, 1) TILED(T, 3, 2) TILED(T, 5, 1) FF_KERNEL(depthwise_bwd_tile<T, 5, 2>)                             \
  FF_KERNEL(depthwise_any<T, 256>) FF_KERNEL(depthwise_bwd_input_any<T, 256>) FF_KERNEL(depthwise_bwd_weight_any<T>) \
  FF_KERNEL(pointwise_fwd<T>) FF_KERNEL(pointwise_bwd_weight<T>) FF_KERNEL(pointwise_bwd_input<T>)

FF_KERNELS_BEGIN(separable_conv)
STORED(float) STORED(double) STORED(bf16) STORED(f16)
FF_KERNEL(depthwise_tile<float, 5, 2>) FF_KERNEL(depthwise_tile<bf16, 5, 2>) FF_KERNEL(depthwise_tile<f16, 5, 2>)
FF_KERNELS_END

}  // namespace ff::cuda
