// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "conv2d/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T) FF_KERNEL(conv2d_fwd<T>) FF_KERNEL(conv2d_bwd_input<T>) FF_KERNEL(conv2d_bwd_weight<T>)

FF_KERNELS_BEGIN(conv2d)
STORED(float) STORED(double) STORED(bf16) STORED(f16)
FF_KERNELS_END

}  // namespace ff::cuda
