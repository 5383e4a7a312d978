// SPDX-License-Identifier: Apache-2.0
// Reductions over the rows of a (rows, channels) matrix, for each channel: what statistics, their gradients and pooling
// over an image are made of. Neighbouring lanes take neighbouring channels, so that reads are whole lines, and groups
// of lanes take rows in turn. Order and partition follow from the shape alone: results repeat bit by bit.
#pragma once

#include "cuda/math.cuh"

namespace ff::cuda {

constexpr int kColumnLanes = 32;
constexpr int kColumnWarps = 8;
constexpr int kColumnThreads = kColumnLanes * kColumnWarps;

// Lanes that take one row's channels: a warp, or a part of it where that suffices, so that none idles.
__device__ __forceinline__ int column_lanes(index_t channels) { return channels > 16 ? 32 : channels > 8 ? 16 : 8; }

// The channel whose rows this thread takes, of a block that begins at first_channel; it may be past the last.
__device__ __forceinline__ index_t channel_of_thread(index_t first_channel, index_t channels) {
  return first_channel + thread_rank() % column_lanes(channels);
}

// Joins the states that `lanes` threads of each group hold, with `merge(into, from)`, pairs in a tree: group 0 has the
// totals. `states` has kWords * kThreads elements, and is free again when all have returned and met a barrier.
template <int kWords, int kThreads, class C, class Merge>
__device__ __forceinline__ void join_groups(C (&state)[kWords], int lanes, const Shared<C>& states,
                                            const Merge& merge) {
  const int groups = kThreads / lanes, group = thread_rank() / lanes;
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
}

// Accumulates with `add(state, row, channel)` over rows [first, last), for the channels that the lanes take from
// first_channel on, joins the groups' states with `merge`, and hands each channel's total to `finish(state, channel)`,
// one thread each. A state has kWords compute words; `states` as `join_groups`.
template <int kWords, int kThreads, class C, class Add, class Merge, class Finish>
__device__ __forceinline__ void reduce_rows(index_t first, index_t last, index_t first_channel, index_t channels,
                                            const Shared<C>& states, const C (&zero)[kWords], const Add& add,
                                            const Merge& merge, const Finish& finish) {
  const int lanes = column_lanes(channels), groups = kThreads / lanes, group = thread_rank() / lanes;
  const index_t channel = channel_of_thread(first_channel, channels);
  C state[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) state[i] = zero[i];
  if (channel < channels)
    for (index_t row = first + group; row < last; row += groups) add(state, row, channel);
  join_groups<kWords, kThreads>(state, lanes, states, merge);
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

// Whether this block is the last of `blocks` to come here, of those with one ticket: it may read, by `load_written`,
// what the others have written. Called by all threads.
__device__ __forceinline__ bool last_block(unsigned* ticket, index_t blocks) {
  FF_SHARED(int, last, 1);
  publish();
  sync();
  if (thread_rank() == 0) last[0] = take_ticket(ticket, blocks) ? 1 : 0;
  sync();
  const bool is_last = last[0] != 0;
  if (is_last) publish();
  return is_last;
}

// Chan, Golub, LeVeque 1979: (count, mean, m2) of two samples together, m2 the sum of squared deviations.
struct MergeMoments {
  template <class C>
  __device__ __forceinline__ void operator()(C (&into)[3], const C (&from)[3]) const {
    const C count = into[0] + from[0];
    if (from[0] == C(0)) return;
    const C delta = from[1] - into[1], share = from[0] / count;
    into[1] += delta * share;
    into[2] += from[2] + delta * delta * into[0] * share;
    into[0] = count;
  }
};

// Welford's step.
template <class C>
__device__ __forceinline__ void add_moment(C (&state)[3], C value) {
  const C delta = value - state[1];
  state[0] += C(1);
  state[1] += delta / state[0];
  state[2] += delta * (value - state[1]);
}

// Statistics of a norm, gathered where its input is made: `partial` [parts][3][channels], a part's count, mean and m2;
// `stats` [3][channels], mean, 1/sqrt(var + eps), unbiased variance; a ticket for each group of channels whose parts
// are waited for together. Null `partial`: none are asked for.
template <class C>
struct Gathered {
  C* partial;
  C* stats;
  unsigned* tickets;
  index_t channels;
  double eps;

  __device__ __forceinline__ void put(index_t part, index_t channel, const C (&state)[3]) const {
#pragma unroll
    for (int i = 0; i < 3; ++i) partial[(3 * part + i) * channels + channel] = state[i];
  }

  // By the last block that put parts of these channels: kColumnLanes of them from first_channel on; `states` has
  // kThreads elements. The sums are about the first part's mean and in double, so that they need no division and may be
  // added in any order.
  template <int kThreads>
  __device__ __forceinline__ void finish(index_t parts, index_t first_channel, const Shared<double>& states) const {
    const int lanes = column_lanes(channels), groups = kThreads / lanes, group = thread_rank() / lanes;
    const index_t channel = first_channel + thread_rank() % lanes;
    const double shift = channel < channels ? load_written(partial + channels + channel) : C(0);
    double sums[4] = {};
    if (channel < channels)
#pragma unroll 4
      for (index_t part = group; part < parts; part += groups) {
        const C* const at = partial + 3 * part * channels + channel;
        const double count = load_written(at), mean = load_written(at + channels) - shift;
        sums[0] += count;
        sums[1] += count * mean;
        sums[2] += count * mean * mean;
        sums[3] += load_written(at + 2 * channels);
      }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      double sum[1] = {sums[i]};
      join_groups<1, kThreads>(sum, lanes, states, AddWords());
      sums[i] = sum[0];
      sync();
    }
    if (group > 0 || channel >= channels) return;
    const double count = sums[0], mean = sums[1] / count, sum = sums[3] + (sums[2] - sums[1] * mean);
    const double m2 = sum < 0 ? 0 : sum;
    stats[channel] = static_cast<C>(shift + mean);
    stats[channels + channel] = static_cast<C>(1 / sqrt(m2 / count + eps));
    stats[2 * channels + channel] = static_cast<C>(count > 1 ? m2 / (count - 1) : m2);
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
