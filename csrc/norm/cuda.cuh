// SPDX-License-Identifier: Apache-2.0
// Batch normalisation and an activation over rows of channels (NHWC): z = act((x - mean)·invstd·weight + bias).
// Training reads x for its moments, reads it again to normalise; backward reads (dz, x) for two sums a channel, and
// again for dx. Activations are T, parameters, statistics and partial sums are its compute type.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/normalise.cuh"

namespace ff::cuda {

// Statistics of x, gathered over parts of `rows_per_block` rows.
template <class T>
__global__ void __launch_bounds__(kColumnThreads, 4)
    moments(const T* __restrict__ x, compute_t<T>* partial, compute_t<T>* __restrict__ stats, unsigned* tickets,
            double eps, index_t rows, index_t channels, index_t rows_per_block) {
  using C = compute_t<T>;
  FF_SHARED(double, states, kColumnThreads);
  const Gathered<C> out{partial, stats, tickets + block_y(), channels, eps};
  const index_t first = block_x() * rows_per_block, first_channel = block_y() * kColumnLanes;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<3, C>(
      first, last, first_channel, channels, {C(0), C(0), C(0)},
      [&](C(&state)[3], index_t row, index_t channel) { add_moment(state, C(widen(x[row * channels + channel]))); },
      MergeMoments(), [&](const C(&state)[3], index_t channel) { out.put(block_x(), channel, state); });
  if (last_block(out.tickets, blocks_x())) out.template finish<kColumnThreads>(blocks_x(), first_channel, states);
}

// act(norm(x)) of packs of kVec elements, channels a multiple of kVec. Element i belongs to channel i % channels, which
// a thread follows without dividing; where the grid's stride is a multiple of the channels, it stays the same.
template <class T, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads)
    norm_act(const T* __restrict__ x, const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ bias,
             const compute_t<T>* __restrict__ stats, const compute_t<T>* __restrict__ var, double eps,
             T* __restrict__ z, index_t count, index_t channels, index_t act) {
  using C = compute_t<T>;
  const NormOnLoad<C> on_load{weight, bias, stats, var, eps, channels, static_cast<int>(act)};
  const index_t step = split(grid_size<kThreads>() * kVec, channels).rest;
  index_t channel = split(grid_rank<kThreads>() * kVec, channels).rest;
  ChannelNorm<C> norms[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) norms[k] = on_load.of(channel + k);
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    Pack<T, kVec> v = load<kVec>(x + i * kVec, kVec);
#pragma unroll
    for (int k = 0; k < kVec; ++k) v.at[k] = narrow<T>(norms[k](widen(v.at[k])));
    store(z + i * kVec, v, kVec);
    if (step == 0) continue;
    channel += step;
    if (channel >= channels) channel -= channels;
#pragma unroll
    for (int k = 0; k < kVec; ++k) norms[k] = on_load.of(channel + k);
  }
}

// Adds up the parts [parts][words][channels] that blocks with the same channels left, by the last of them: total
// (word, channel) goes to `put`.
template <int kWords, class C, class Put>
__device__ __forceinline__ void finish_sums(const C* partial, unsigned* tickets, index_t channels,
                                            const Shared<double>& states, const Put& put) {
  if (!last_block(tickets + block_y(), blocks_x())) return;
  const double zero[kWords] = {};
  reduce_rows<kWords, kColumnThreads, double>(
      0, blocks_x(), block_y() * kColumnLanes, channels, states, zero,
      [&](double (&state)[kWords], index_t part, index_t channel) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) state[i] += load_written(partial + (kWords * part + i) * channels + channel);
      },
      AddWords(),
      [&](const double (&state)[kWords], index_t channel) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) put(i, channel, static_cast<C>(state[i]));
      });
}

// Sums over the rows of g and g·xhat, the gradients of the norm's bias and weight, g = dz·act'(normalised x); partial
// [row blocks][2][channels].
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    norm_sums(const T* __restrict__ dz, const T* __restrict__ x, const compute_t<T>* __restrict__ weight,
              const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ stats, compute_t<T>* partial,
              compute_t<T>* __restrict__ d_bias, compute_t<T>* __restrict__ d_weight, unsigned* tickets, index_t rows,
              index_t channels, index_t rows_per_block, index_t act) {
  using C = compute_t<T>;
  FF_SHARED(double, states, 2 * kColumnThreads);
  const index_t first = block_x() * rows_per_block;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<2, C>(
      first, last, block_y() * kColumnLanes, channels, {C(0), C(0)},
      [&](C(&state)[2], index_t row, index_t channel) {
        const index_t i = row * channels + channel;
        const C xhat = (widen(x[i]) - stats[channel]) * stats[channels + channel];
        const C g = activate_grad(static_cast<int>(act), widen(dz[i]), xhat * weight[channel] + bias[channel]);
        state[0] += g;
        state[1] += g * xhat;
      },
      AddWords(),
      [&](const C(&state)[2], index_t channel) {
        partial[2 * block_x() * channels + channel] = state[0];
        partial[(2 * block_x() + 1) * channels + channel] = state[1];
      });
  finish_sums<2, C>(partial, tickets, channels, states,
                    [&](int word, index_t channel, C sum) { (word == 0 ? d_bias : d_weight)[channel] = sum; });
}

// sums [channels] of x over the rows; partial [row blocks][channels].
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    column_sums(const T* __restrict__ x, compute_t<T>* partial, compute_t<T>* __restrict__ sums, unsigned* tickets,
                index_t rows, index_t channels, index_t rows_per_block) {
  using C = compute_t<T>;
  FF_SHARED(double, states, kColumnThreads);
  const index_t first = block_x() * rows_per_block;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<1, C>(
      first, last, block_y() * kColumnLanes, channels, {C(0)},
      [&](C(&state)[1], index_t row, index_t channel) { state[0] += widen(x[row * channels + channel]); }, AddWords(),
      [&](const C(&state)[1], index_t channel) { partial[block_x() * channels + channel] = state[0]; });
  finish_sums<1, C>(partial, tickets, channels, states, [&](int, index_t channel, C sum) { sums[channel] = sum; });
}

// sums [words] of partial [blocks][words], words [outputs][taps][channels] turned into [outputs][channels][taps], in
// double. A block takes 32 words, its groups of lanes the parts in turn.
template <class C>
__global__ void __launch_bounds__(kColumnThreads)
    sum_blocks(const C* __restrict__ partial, C* __restrict__ sums, index_t blocks, index_t words, index_t taps,
               index_t channels) {
  reduce_columns<1, double>(
      0, blocks, block_x() * kColumnLanes, words, {0.0},
      [&](double (&state)[1], index_t block, index_t i) {
        state[0] += static_cast<double>(partial[block * words + i]);
      },
      AddWords(),
      [&](const double (&state)[1], index_t i) {
        const Split row = split(i, channels), output = split(row.whole, taps);
        sums[(output.whole * channels + row.rest) * taps + output.rest] = static_cast<C>(state[0]);
      });
}

// What a norm's gradient takes from its channel: act'(norm) and, with batch statistics, their share.
template <class C>
struct ChannelGrad {
  C mean, invstd, weight, bias, of_bias, of_weight;
};

// dx = weight·invstd·(g - (sum g + xhat·sum g·xhat) / rows); without batch statistics (null sums) the sums drop out; a
// null weight stands for no norm. Packs and channels as `norm_act`.
template <class T, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads)
    norm_grad(const T* __restrict__ dz, const T* __restrict__ x, const compute_t<T>* __restrict__ weight,
              const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ stats,
              const compute_t<T>* __restrict__ d_bias, const compute_t<T>* __restrict__ d_weight, T* __restrict__ dx,
              index_t count, index_t channels, index_t act) {
  using C = compute_t<T>;
  const C share = C(1) / static_cast<C>(split(count * kVec, channels).whole);
  const auto of = [&](index_t c) -> ChannelGrad<C> {
    if (!weight) return {C(0), C(1), C(1), C(0), C(0), C(0)};
    const C of_bias = d_bias ? d_bias[c] * share : C(0), of_weight = d_bias ? d_weight[c] * share : C(0);
    return {stats[c], stats[channels + c], weight[c], bias[c], of_bias, of_weight};
  };
  const index_t step = split(grid_size<kThreads>() * kVec, channels).rest;
  index_t channel = split(grid_rank<kThreads>() * kVec, channels).rest;
  ChannelGrad<C> grads[kVec];
#pragma unroll
  for (int k = 0; k < kVec; ++k) grads[k] = of(channel + k);
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    Pack<T, kVec> g = load<kVec>(dz + i * kVec, kVec);
    const Pack<T, kVec> v = load<kVec>(x + i * kVec, kVec);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const ChannelGrad<C>& c = grads[k];
      const C xhat = (widen(v.at[k]) - c.mean) * c.invstd;
      C grad = activate_grad(static_cast<int>(act), widen(g.at[k]), xhat * c.weight + c.bias);
      if (d_bias) grad -= c.of_bias + xhat * c.of_weight;
      g.at[k] = narrow<T>(grad * c.invstd * c.weight);
    }
    store(dx + i * kVec, g, kVec);
    if (step == 0) continue;
    channel += step;
    if (channel >= channels) channel -= channels;
#pragma unroll
    for (int k = 0; k < kVec; ++k) grads[k] = of(channel + k);
  }
}

}  // namespace ff::cuda
