// SPDX-License-Identifier: Apache-2.0
// A norm and an activation, applied to what a kernel loads.
#pragma once

#include "cuda/math.cuh"

namespace ff::cuda {

// act(norm(value)) of one channel.
template <class C>
struct ChannelNorm {
  C mean, scale, bias;
  int act;
  bool norm;

  __device__ __forceinline__ C operator()(C value) const {
    return activate(act, norm ? (value - mean) * scale + bias : value);
  }
};

// A norm, or none where weight is null, and an activation. Statistics are either those of a batch, [3][channels] of
// norm/cuda.cuh, or, unless var is null, running ones: means, and variances, to which eps is added.
template <class C>
struct NormOnLoad {
  const C *weight, *bias, *stats, *var;
  double eps;
  index_t channels;
  int act;

  __device__ __forceinline__ ChannelNorm<C> of(index_t channel) const {
    if (!weight || channel >= channels) return {C(0), C(1), C(0), act, false};
    const C invstd = var ? C(1) / sqrt(var[channel] + static_cast<C>(eps)) : stats[channels + channel];
    return {stats[channel], invstd * weight[channel], bias[channel], act, true};
  }
  __device__ __forceinline__ bool none() const { return !weight && act == static_cast<int>(Act::none); }
};

// act(norm(x)) at (row, channel).
template <class T>
struct Normalised {
  const T* x;
  NormOnLoad<compute_t<T>> on_load;

  __device__ __forceinline__ compute_t<T> operator()(index_t row, index_t channel) const {
    return on_load.of(channel)(widen(x[row * on_load.channels + channel]));
  }
};

}  // namespace ff::cuda
