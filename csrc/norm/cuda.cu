// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "norm/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T)             \
  FF_KERNEL(moments<T>)       \
  FF_KERNEL(column_sums<T>)   \
  FF_KERNEL(norm_act<T, 256>) \
  FF_KERNEL(norm_sums<T>)     \
  FF_KERNEL(norm_grad<T, 256>)
#define COMPUTED(C)                 \
  FF_KERNEL(moments_finish<C, 256>) \
  FF_KERNEL(sum_blocks<C, 256>)

FF_KERNELS_BEGIN(norm)
STORED(float)
STORED(double)
STORED(bf16)
STORED(f16)
COMPUTED(float)
COMPUTED(double)
FF_KERNELS_END

}  // namespace ff::cuda
