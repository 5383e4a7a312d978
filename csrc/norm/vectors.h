// SPDX-License-Identifier: Apache-2.0
// The per-channel vectors of a normalisation that a kernel's caller asked for, forward and backward.
#pragma once
#include "norm/op.h"
#include "norm/stats.h"

namespace ff {
namespace FF_ISA {
namespace {

// Bounds of the activations that are a clamp; false for the others.
template <class T>
FF_INLINE bool clamp_bounds(Act act, T* lo, T* hi) {
  *lo = act == Act::relu || act == Act::relu6 ? T(0) : T(-__builtin_inf());
  *hi = act == Act::relu6 ? T(6) : T(__builtin_inf());
  return act == Act::none || act == Act::relu || act == Act::relu6;
}

// Convolution bias and running-statistics norm as one scale and shift.
template <class T>
FF_INLINE void fold(const NormParams& norm, const void* bias, idx channels, T* scale, T* shift) {
  const T* b = static_cast<const T*>(bias);
  copy_padded<T>(shift, b, channels);
  if (!norm.weight) return;
  for (idx c = 0; c < channels; ++c) {
    const double slope = static_cast<const T*>(norm.weight)[c] /
                         __builtin_sqrt(static_cast<double>(static_cast<const T*>(norm.var)[c]) + norm.eps);
    const double centre = static_cast<double>(static_cast<const T*>(norm.mean)[c]) - (b ? b[c] : T(0));
    scale[c] = static_cast<T>(slope);
    shift[c] = static_cast<T>(static_cast<const T*>(norm.bias)[c] - centre * slope);
  }
}

template <class T>
FF_INLINE void constant_stats(const NormParams& norm, idx channels, bool batch_stats) {
  if (norm.weight && !batch_stats)
    running_stats<T>(static_cast<const T*>(norm.mean), static_cast<const T*>(norm.var), channels, norm.eps,
                     static_cast<T*>(norm.stats));
}

// v[times][channels] from v[0]; vectors have the room, see Wide.
template <class T>
FF_INLINE void repeat(T* v, idx channels, idx times) {
  for (idx i = channels; i < channels * times; ++i) v[i] = v[i - channels];
}

// Per-channel vectors of a normalisation in training; null without one.
template <class T>
struct NormVectors {
  T *scale = nullptr, *shift = nullptr, *mean = nullptr;

  void take(Arena& a, const NormParams& norm, idx channels) {
    if (!norm.weight) return;
    scale = a.take<T>(channels), shift = a.take<T>(channels), mean = a.take<T>(channels);
  }
  void fill(const NormParams& norm, idx channels, idx times = 1) {
    if (!norm.weight) return;
    norm_vectors<T>(static_cast<const T*>(norm.weight), static_cast<const T*>(norm.bias),
                    static_cast<const T*>(norm.stats), channels, scale, shift, mean);
    repeat(scale, channels, times), repeat(shift, channels, times), repeat(mean, channels, times);
  }
};

template <class T>
struct NormGradVectors {
  T *slope = nullptr, *curve = nullptr, *offset = nullptr;
  NormGrad<T> grad{};

  void take(Arena& a, const NormParams& norm, idx channels) {
    if (!norm.weight) return;
    slope = a.take<T>(channels), curve = a.take<T>(channels), offset = a.take<T>(channels);
  }
  const NormGrad<T>* fill(const NormParams& norm, idx channels, double* s, double* sx, idx parts, idx stride, idx count,
                          bool batch_stats, idx times = 1) {
    if (!norm.weight) return nullptr;
    norm_backward_vectors<T>(static_cast<const T*>(norm.weight), static_cast<const T*>(norm.stats), channels, s, sx,
                             parts, stride, static_cast<double>(max_idx(count, 1)), batch_stats, slope, curve, offset,
                             static_cast<T*>(norm.d_weight), static_cast<T*>(norm.d_bias));
    repeat(slope, channels, times), repeat(curve, channels, times), repeat(offset, channels, times);
    grad = {slope, curve, offset};
    return &grad;
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
