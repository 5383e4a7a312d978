// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "attention/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T)                     \
  FF_KERNEL(attention_fwd<T>)         \
  FF_KERNEL(attention_bwd_queries<T>) \
  FF_KERNEL(attention_bwd_keys<T>)    \
  FF_KERNEL(additive_hidden<T>)       \
  FF_KERNEL(additive_fwd<T, 128>)     \
  FF_KERNEL(additive_bwd<T, 128>)     \
  FF_KERNEL(additive_bwd_input<T>)    \
  FF_KERNEL(additive_bwd_weight<T>)

FF_KERNELS_BEGIN(attention)
STORED(float)
STORED(double)
STORED(bf16)
STORED(f16)
FF_KERNELS_END

}  // namespace ff::cuda
