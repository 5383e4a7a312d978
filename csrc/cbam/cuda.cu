// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds: the convolution over the planes for CBAM's 7 x 7, and for any size.
#include "cbam/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T, vec)               \
  FF_KERNEL(cbam_gates<T, 512>)      \
  FF_KERNEL(cbam_apply<T, vec, 256>) \
  FF_KERNEL(cbam_apply<T, 1, 256>)   \
  FF_KERNEL(pixel_dots<T, 512>)      \
  FF_KERNEL(cbam_bwd<T, 512>)
#define COMPUTED(C)                      \
  FF_KERNEL(cbam_conv<C, 7, false, 256>) \
  FF_KERNEL(cbam_conv<C, 7, true, 256>)  \
  FF_KERNEL(cbam_conv<C, 0, false, 256>) \
  FF_KERNEL(cbam_conv<C, 0, true, 256>)  \
  FF_KERNEL(cbam_conv_weight<C, 256>)

FF_KERNELS_BEGIN(cbam)
STORED(float, 4)
STORED(double, 2)
STORED(bf16, 8)
STORED(f16, 8)
COMPUTED(float)
COMPUTED(double)
FF_KERNELS_END

}  // namespace ff::cuda
