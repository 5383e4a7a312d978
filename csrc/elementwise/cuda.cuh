// SPDX-License-Identifier: Apache-2.0
// y = act(x) and dx = dy · act'(x) over n elements in storage order (formulas in cuda/math.cuh).
// One thread per pack of kVec elements, grid-stride, so that any grid is correct. Bound by memory: 2 and 3 accesses an
// element. The family to copy when adding one.
#pragma once

#include "cuda/device.cuh"
#include "cuda/math.cuh"

namespace ff::cuda {

// x, y: (n), both aligned to kVec elements.
template <class T, Act kAct, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads) activation_fwd(const T* __restrict__ x, T* __restrict__ y, index_t n) {
  for (index_t i = grid_rank<kThreads>() * kVec; i < n; i += grid_size<kThreads>() * kVec) {
    Pack<T, kVec> v = load<kVec>(x + i, n - i);
#pragma unroll
    for (int k = 0; k < kVec; ++k) v.at[k] = narrow<T>(activate<kAct>(widen(v.at[k])));
    store(y + i, v, n - i);
  }
}

// dy, x, dx: (n), all aligned to kVec elements.
template <class T, Act kAct, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads)
    activation_bwd(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, index_t n) {
  for (index_t i = grid_rank<kThreads>() * kVec; i < n; i += grid_size<kThreads>() * kVec) {
    Pack<T, kVec> g = load<kVec>(dy + i, n - i);
    const Pack<T, kVec> v = load<kVec>(x + i, n - i);
#pragma unroll
    for (int k = 0; k < kVec; ++k) g.at[k] = narrow<T>(activate_grad<kAct>(widen(g.at[k]), widen(v.at[k])));
    store(dx + i, g, n - i);
  }
}

}  // namespace ff::cuda
