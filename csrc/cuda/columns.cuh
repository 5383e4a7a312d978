// SPDX-License-Identifier: Apache-2.0
// Reductions over the rows of a (rows, channels) matrix, for each channel: what statistics, their gradients and pooling
// over an image are made of. A block takes 32 neighbouring channels, one a lane, and a part of the rows, one a warp and
// turn, so that its reads are whole lines. Order and partition follow from the shape alone: results repeat bit by bit.
#pragma once

#include "cuda/device.cuh"

namespace ff::cuda {

constexpr int kColumnLanes = 32;
constexpr int kColumnWarps = 8;
constexpr int kColumnThreads = kColumnLanes * kColumnWarps;

// Accumulates with `add(state, row, channel)` over the block's rows [first, last), then merges the warps' states in order
// with `merge(into, from)` and hands each channel's total to `finish(state, channel)`, one lane of the first warp each.
// State: kWords compute words, in an array; a channel past the last takes part in the barriers and adds nothing.
template <int kWords, class C, class Add, class Merge, class Finish>
__device__ __forceinline__ void reduce_columns(index_t first, index_t last, index_t first_channel, index_t channels,
                                               const C (&zero)[kWords], const Add& add, const Merge& merge,
                                               const Finish& finish) {
  FF_SHARED(C, states, kWords * kColumnThreads);
  const index_t channel = first_channel + lane_rank();
  C state[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) state[i] = zero[i];
  if (channel < channels)
    for (index_t row = first + warp_rank(); row < last; row += kColumnWarps) add(state, row, channel);
#pragma unroll
  for (int i = 0; i < kWords; ++i) states[i * kColumnThreads + thread_rank()] = state[i];
  sync();
  if (warp_rank() > 0 || channel >= channels) return;
  for (int warp = 1; warp < kColumnWarps; ++warp) {
    C other[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) other[i] = states[i * kColumnThreads + warp * kColumnLanes + lane_rank()];
    merge(state, other);
  }
  finish(state, channel);
}

}  // namespace ff::cuda
