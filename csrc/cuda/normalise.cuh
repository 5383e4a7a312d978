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

// A norm, or none where weight is null, and an activation; stats [3][channels] are those of norm/cuda.cuh.
template <class C>
struct Before {
  const C *weight, *bias, *stats;
  index_t channels;
  int act;

  __device__ __forceinline__ ChannelNorm<C> of(index_t channel) const {
    if (!weight || channel >= channels) return {C(0), C(1), C(0), act, false};
    return {stats[channel], stats[channels + channel] * weight[channel], bias[channel], act, true};
  }
};

// act(norm(x)) at (row, channel).
template <class T>
struct Normalised {
  const T* x;
  Before<compute_t<T>> before;

  __device__ __forceinline__ compute_t<T> operator()(index_t row, index_t channel) const {
    return before.of(channel)(widen(x[row * before.channels + channel]));
  }
};

}  // namespace ff::cuda
