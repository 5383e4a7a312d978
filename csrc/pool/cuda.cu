// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds; places are bytes where a window has at most 256 elements.
#include "pool/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define PLACED(T, P)                   \
  FF_KERNEL(max_pool2d_fwd<T, P, 256>) \
  FF_KERNEL(max_pool2d_bwd<T, P, 256>)
#define STORED(T)                                 \
  PLACED(T, unsigned char)                        \
  PLACED(T, int)                                  \
  FF_KERNEL(norm_pool_fwd<T, unsigned char, 256>) \
  FF_KERNEL(norm_pool_bwd<T, unsigned char, 256>) \
  FF_KERNEL(global_pool_fwd<T>)                   \
  FF_KERNEL(global_pool_bwd<T, 256>)

FF_KERNELS_BEGIN(pool)
STORED(float)
STORED(double)
STORED(bf16)
STORED(f16)
FF_KERNELS_END

}  // namespace ff::cuda
