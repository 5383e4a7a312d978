// SPDX-License-Identifier: Apache-2.0
// exp, log, tanh, the logistic function, and the activations with their derivatives, on float or double: the formulas
// of simd/math.h, with torch's values at kinks, NaN and infinities. Comparisons are written for the branch NaN must
// take.
#pragma once

#include "cuda/device.cuh"

namespace ff::cuda {

// Codes as fastfer._checks.ACTIVATIONS.
enum class Act : int { none, relu, relu6, hardswish, hardsigmoid, silu, sigmoid };

__device__ __forceinline__ float sqrt(float x) { return ::sqrtf(x); }
__device__ __forceinline__ double sqrt(double x) { return ::sqrt(x); }

// Full accuracy (2 ulp in float), not the fast intrinsic.
__device__ __forceinline__ float exp(float x) { return ::expf(x); }
__device__ __forceinline__ double exp(double x) { return ::exp(x); }

__device__ __forceinline__ float log(float x) { return ::logf(x); }
__device__ __forceinline__ double log(double x) { return ::log(x); }
__device__ __forceinline__ float tanh(float x) { return ::tanhf(x); }
__device__ __forceinline__ double tanh(double x) { return ::tanh(x); }

template <class C>
__device__ __forceinline__ C infinity() {
  return C(1e300 * 1e300);
}

template <class C>
__device__ __forceinline__ C logistic(C x) {
  return C(1) / (C(1) + exp(-x));
}

// min(max(x, 0), 6); NaN stays.
template <class C>
__device__ __forceinline__ C clamp6(C x) {
  return x < C(0) ? C(0) : x > C(6) ? C(6) : x;
}

// act(x)
template <Act kAct, class C>
__device__ __forceinline__ C activate(C x) {
  if constexpr (kAct == Act::relu) return x < C(0) ? C(0) : x;
  if constexpr (kAct == Act::relu6) return clamp6(x);
  if constexpr (kAct == Act::hardswish) return x * (clamp6(x + C(3)) * C(1.0 / 6));
  if constexpr (kAct == Act::hardsigmoid) return clamp6(x + C(3)) * C(1.0 / 6);
  if constexpr (kAct == Act::silu) return x / (C(1) + exp(-x));
  if constexpr (kAct == Act::sigmoid) return logistic(x);
  if constexpr (kAct == Act::none) return x;
}

// dy · act'(x). Saturated sides are selected, not multiplied by zero: an infinite dy gives 0 there. At x = NaN: dy for
// relu and relu6, 0 for hardsigmoid, NaN for the others.
template <Act kAct, class C>
__device__ __forceinline__ C activate_grad(C dy, C x) {
  if constexpr (kAct == Act::relu) return x <= C(0) ? C(0) : dy;
  if constexpr (kAct == Act::relu6) return x <= C(0) || x >= C(6) ? C(0) : dy;
  if constexpr (kAct == Act::hardswish) return x <= C(-3) ? C(0) : x >= C(3) ? dy : dy * (x * C(1.0 / 3) + C(0.5));
  if constexpr (kAct == Act::hardsigmoid) return x > C(-3) && x < C(3) ? dy * C(1.0 / 6) : C(0);
  if constexpr (kAct == Act::silu) {
    const C s = logistic(x);
    return dy * s * (C(1) + x * (C(1) - s));
  }
  if constexpr (kAct == Act::sigmoid) {
    const C s = logistic(x);
    return dy * s * (C(1) - s);
  }
  if constexpr (kAct == Act::none) return dy;
}

// The same for a code known at run time: one uniform branch, hidden behind the memory access of kernels that use it.
template <class C>
__device__ __forceinline__ C activate(int act, C x) {
  switch (static_cast<Act>(act)) {
    case Act::relu: return activate<Act::relu>(x);
    case Act::relu6: return activate<Act::relu6>(x);
    case Act::hardswish: return activate<Act::hardswish>(x);
    case Act::hardsigmoid: return activate<Act::hardsigmoid>(x);
    case Act::silu: return activate<Act::silu>(x);
    case Act::sigmoid: return activate<Act::sigmoid>(x);
    default: return x;
  }
}
template <class C>
__device__ __forceinline__ C activate_grad(int act, C dy, C x) {
  switch (static_cast<Act>(act)) {
    case Act::relu: return activate_grad<Act::relu>(dy, x);
    case Act::relu6: return activate_grad<Act::relu6>(dy, x);
    case Act::hardswish: return activate_grad<Act::hardswish>(dy, x);
    case Act::hardsigmoid: return activate_grad<Act::hardsigmoid>(dy, x);
    case Act::silu: return activate_grad<Act::silu>(dy, x);
    case Act::sigmoid: return activate_grad<Act::sigmoid>(dy, x);
    default: return dy;
  }
}

}  // namespace ff::cuda
