// SPDX-License-Identifier: Apache-2.0
// Reductions over the rows of a (rows, channels) matrix, for each channel: what statistics, their gradients and pooling
// over an image are made of. Neighbouring lanes take neighbouring channels, so that reads are whole lines, and groups
// of lanes take rows in turn. Order and partition follow from the shape alone: results repeat bit by bit.
#pragma once

#include "cuda/device.cuh"

namespace ff::cuda {

constexpr int kColumnLanes = 32;
constexpr int kColumnWarps = 8;
constexpr int kColumnThreads = kColumnLanes * kColumnWarps;

// Lanes that take one row's channels: a warp, or a part of it where that suffices, so that none idles.
__device__ __forceinline__ int column_lanes(index_t channels) { return channels > 16 ? 32 : channels > 8 ? 16 : 8; }

// Accumulates with `add(state, row, channel)` over rows [first, last), for the channels that the lanes take from
// first_channel on, then joins the groups' states with `merge(into, from)`, pairs in a tree, and hands each channel's
// total to `finish(state, channel)`, one thread each. A state has kWords compute words; `states` has kWords * kThreads
// elements, and is free again when all have returned and met a barrier.
template <int kWords, int kThreads, class C, class Add, class Merge, class Finish>
__device__ __forceinline__ void reduce_rows(index_t first, index_t last, index_t first_channel, index_t channels,
                                            const Shared<C>& states, const C (&zero)[kWords], const Add& add,
                                            const Merge& merge, const Finish& finish) {
  const int lanes = column_lanes(channels), groups = kThreads / lanes, group = thread_rank() / lanes;
  const index_t channel = first_channel + thread_rank() % lanes;
  C state[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) state[i] = zero[i];
  if (channel < channels)
    for (index_t row = first + group; row < last; row += groups) add(state, row, channel);
#pragma unroll
  for (int i = 0; i < kWords; ++i) states[i * kThreads + thread_rank()] = state[i];
  for (int half = groups / 2; half > 0; half /= 2) {
    sync();
    if (group >= half) continue;
    C other[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) other[i] = states[i * kThreads + thread_rank() + half * lanes];
    merge(state, other);
#pragma unroll
    for (int i = 0; i < kWords; ++i) states[i * kThreads + thread_rank()] = state[i];
  }
  if (group == 0 && channel < channels) finish(state, channel);
}

// The same by a block of kColumnThreads, with shared memory of its own.
template <int kWords, class C, class Add, class Merge, class Finish>
__device__ __forceinline__ void reduce_columns(index_t first, index_t last, index_t first_channel, index_t channels,
                                               const C (&zero)[kWords], const Add& add, const Merge& merge,
                                               const Finish& finish) {
  FF_SHARED(C, states, kWords * kColumnThreads);
  reduce_rows<kWords, kColumnThreads, C>(first, last, first_channel, channels, states, zero, add, merge, finish);
}

// States that are sums.
struct AddWords {
  template <class C, int kWords>
  __device__ __forceinline__ void operator()(C (&into)[kWords], const C (&from)[kWords]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) into[i] += from[i];
  }
};

// Sum, maximum and the maximum's row, a state of four words: the row in two of 2^20, exact in float; it begins with
// a row of -1. The maximum is the first of equal ones, or the last NaN, as torch's pooling has it.
template <class C>
struct Pooled {
  static constexpr index_t kLow = 1 << 20;

  __device__ __forceinline__ static void add(C (&state)[4], C value, index_t row) {
    state[0] += value;
    if (state[2] < C(0) || value > state[1] || value != value)
      state[1] = value, state[2] = static_cast<C>(row / kLow), state[3] = static_cast<C>(row % kLow);
  }
  __device__ __forceinline__ static index_t row(const C (&state)[4]) {
    return static_cast<index_t>(state[2]) * kLow + static_cast<index_t>(state[3]);
  }
  __device__ __forceinline__ void operator()(C (&into)[4], const C (&from)[4]) const {
    into[0] += from[0];
    if (from[2] < C(0)) return;
    const bool earlier = from[2] < into[2] || (from[2] == into[2] && from[3] < into[3]);
    const bool nan = from[1] != from[1], nan_before = into[1] != into[1];
    const bool better = nan ? !nan_before || !earlier : from[1] > into[1] || (from[1] == into[1] && earlier);
    if (into[2] < C(0) || better) into[1] = from[1], into[2] = from[2], into[3] = from[3];
  }
};

}  // namespace ff::cuda
