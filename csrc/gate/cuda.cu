// SPDX-License-Identifier: Apache-2.0
// The instances of cuda.cuh that nvcc builds.
#include "gate/cuda.cuh"

#include "cuda/registry.h"

namespace ff::cuda {

#define STORED(T, vec)               \
  FF_KERNEL(gate_values<T, 512>)     \
  FF_KERNEL(gate_apply<T, vec, 256>) \
  FF_KERNEL(gate_apply<T, 1, 256>)   \
  FF_KERNEL(gate_bwd<T, 512>)        \
  FF_KERNEL(gate_linear_weight<T, 512>)

FF_KERNELS_BEGIN(gate)
STORED(float, 4)
STORED(double, 2)
STORED(bf16, 8)
STORED(f16, 8)
FF_KERNEL(gate_layers_weights<float>)
FF_KERNEL(gate_layers_weights<double>)
FF_KERNELS_END

}  // namespace ff::cuda
