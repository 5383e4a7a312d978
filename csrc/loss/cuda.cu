// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "loss/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T)                   \
  FF_KERNEL(center_fwd<T>)          \
  FF_KERNEL(center_bwd<T>)          \
  FF_KERNEL(center_bwd_centers<T>)  \
  FF_KERNEL(triplet_pairs<T>)       \
  FF_KERNEL(triplet_loss<T>)        \
  FF_KERNEL(triplet_bwd<T>)         \
  FF_KERNEL(cross_entropy_terms<T>) \
  FF_KERNEL(cross_entropy_grad<T>)

FF_KERNELS_BEGIN(loss)
STORED(float)
STORED(double)
STORED(bf16)
STORED(f16)
FF_KERNELS_END

}  // namespace ff::cuda
