// SPDX-License-Identifier: Apache-2.0
// The CUDA path of elementwise, kernels and launches, as a host library with the signatures of _C.cuda; 1 for a miss.
#include "cuda/builtins.h"
#include "elementwise/cuda.cu"

extern "C" int activation_fwd(int dtype, int act, const void* x, void* y, long long n, void* stream) try {
  ff::cuda::launch_activation_fwd(dtype, act, x, y, n, stream);
  return 0;
} catch (const std::invalid_argument&) {
  return 1;
}

extern "C" int activation_bwd(int dtype, int act, const void* dy, const void* x, void* dx, long long n, void* stream) try {
  ff::cuda::launch_activation_bwd(dtype, act, dy, x, dx, n, stream);
  return 0;
} catch (const std::invalid_argument&) {
  return 1;
}
