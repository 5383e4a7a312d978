// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "coordinate/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define PACKED(T, vec)                    \
  FF_KERNEL(coordinate_gate<T, vec, 256>) \
  FF_KERNEL(coordinate_bwd<T, vec, 256>)
#define STORED(T, vec)             \
  FF_KERNEL(coordinate_pool<T>)    \
  FF_KERNEL(coordinate_dlogits<T>) \
  PACKED(T, vec) PACKED(T, 1)

FF_KERNELS_BEGIN(coordinate)
STORED(float, 4)
STORED(double, 2)
STORED(bf16, 8)
STORED(f16, 8)
FF_KERNELS_END

}  // namespace ff::cuda
