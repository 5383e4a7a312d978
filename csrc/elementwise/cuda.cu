// SPDX-License-Identifier: Apache-2.0
// Instantiations and launches of cuda.cuh. x, y, dy, dx: (n) of `dtype` on the current device; asynchronous on `stream`.
#include "elementwise/cuda.cuh"

#include "cuda/launch.h"
#include "cuda/switch.h"

namespace ff::cuda {
namespace {

constexpr int kThreads = 256;

// f(T, act, vec): packs of 16 bytes where every pointer allows them, else single elements.
template <class F>
void switch_kernel(int dtype, int act, bool aligned, F&& f) {
  switch_dtype(dtype, [&](auto zero) {
    switch_int<0, 1, 2, 3, 4, 5, 6>("act", act, [&](auto code) {
      if (aligned)
        f(zero, code, std::integral_constant<int, 16 / sizeof(zero)>{});
      else
        f(zero, code, std::integral_constant<int, 1>{});
    });
  });
}

}  // namespace

void launch_activation_fwd(int dtype, int act, const void* x, void* y, index_t n, void* stream) {
  if (n == 0) return;
  switch_kernel(dtype, act, aligned16(x) && aligned16(y), [&](auto zero, auto code, auto vec) {
    using T = decltype(zero);
    launch("activation_fwd", activation_fwd<T, Act(code.value), vec.value, kThreads>,
           grid_blocks((n + vec - 1) / vec, kThreads), kThreads, stream, static_cast<const T*>(x), static_cast<T*>(y), n);
  });
}

void launch_activation_bwd(int dtype, int act, const void* dy, const void* x, void* dx, index_t n, void* stream) {
  if (n == 0) return;
  switch_kernel(dtype, act, aligned16(dy) && aligned16(x) && aligned16(dx), [&](auto zero, auto code, auto vec) {
    using T = decltype(zero);
    launch("activation_bwd", activation_bwd<T, Act(code.value), vec.value, kThreads>,
           grid_blocks((n + vec - 1) / vec, kThreads), kThreads, stream, static_cast<const T*>(dy),
           static_cast<const T*>(x), static_cast<T*>(dx), n);
  });
}

}  // namespace ff::cuda
