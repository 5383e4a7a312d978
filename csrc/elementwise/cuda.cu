// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds: every activation and storage type, packs of 16 bytes and single elements.
#include "elementwise/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define BOTH(T, act, vec)                     \
  FF_KERNEL(activation_fwd<T, act, vec, 256>) \
  FF_KERNEL(activation_bwd<T, act, vec, 256>)
#define EVERY_ACT(T, vec)        \
  BOTH(T, Act::none, vec)        \
  BOTH(T, Act::relu, vec)        \
  BOTH(T, Act::relu6, vec)       \
  BOTH(T, Act::hardswish, vec)   \
  BOTH(T, Act::hardsigmoid, vec) \
  BOTH(T, Act::silu, vec)        \
  BOTH(T, Act::sigmoid, vec)

FF_KERNELS_BEGIN(elementwise)
EVERY_ACT(float, 4)
EVERY_ACT(double, 2)
EVERY_ACT(bf16, 8)
EVERY_ACT(f16, 8)
EVERY_ACT(float, 1)
EVERY_ACT(double, 1)
EVERY_ACT(bf16, 1)
EVERY_ACT(f16, 1)
FF_KERNELS_END

}  // namespace ff::cuda
