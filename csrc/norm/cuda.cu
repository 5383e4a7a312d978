// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "norm/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T, vec)             \
  FF_KERNEL(moments<T>)            \
  FF_KERNEL(column_sums<T>)        \
  FF_KERNEL(norm_act<T, 1, 256>)   \
  FF_KERNEL(norm_act<T, vec, 256>) \
  FF_KERNEL(norm_sums<T>)          \
  FF_KERNEL(norm_grad<T, 1, 256>)  \
  FF_KERNEL(norm_grad<T, vec, 256>)

FF_KERNELS_BEGIN(norm)
STORED(float, 4)
STORED(double, 2)
STORED(bf16, 8)
STORED(f16, 8)
FF_KERNEL(sum_blocks<float>)
FF_KERNEL(sum_blocks<double>)
FF_KERNELS_END

}  // namespace ff::cuda
