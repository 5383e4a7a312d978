// SPDX-License-Identifier: Apache-2.0
// Batch normalisation and an activation over rows of channels (NHWC): z = act((x - mean)·invstd·weight + bias).
// Training reads x for its moments, reads it again to normalise; backward reads (dz, x) for two sums a channel, and
// again for dx. Activations are T, parameters, statistics and partial sums are its compute type.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/normalise.cuh"

namespace ff::cuda {

// Chan, Golub, LeVeque 1979: (count, mean, m2) of two samples together.
template <class C>
__device__ __forceinline__ void merge_moments(C (&into)[3], const C (&from)[3]) {
  const C count = into[0] + from[0];
  if (from[0] == C(0)) return;
  const C delta = from[1] - into[1], share = from[0] / count;
  into[1] += delta * share;
  into[2] += from[2] + delta * delta * into[0] * share;
  into[0] = count;
}

// partial [row blocks][2][channels]: mean and sum of squared deviations of each part of `rows_per_block` rows.
template <class T>
__global__ void __launch_bounds__(kColumnThreads, 4)
    moments(const T* __restrict__ x, compute_t<T>* __restrict__ partial, index_t rows, index_t channels,
            index_t rows_per_block) {
  using C = compute_t<T>;
  const index_t first = block_x() * rows_per_block;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<3, C>(
      first, last, block_y() * kColumnLanes, channels, {C(0), C(0), C(0)},
      [&](C(&state)[3], index_t row, index_t channel) {  // Welford
        const C value = widen(x[row * channels + channel]), delta = value - state[1];
        state[0] += C(1);
        state[1] += delta / state[0];
        state[2] += delta * (value - state[1]);
      },
      [](C(&into)[3], const C(&from)[3]) { merge_moments(into, from); },
      [&](const C(&state)[3], index_t channel) {
        partial[(2 * block_x() + 0) * channels + channel] = state[1];
        partial[(2 * block_x() + 1) * channels + channel] = state[2];
      });
}

// stats [3][channels]: mean, 1/sqrt(var + eps), unbiased variance, from the parts in order, in double.
template <class C, int kThreads>
__global__ void __launch_bounds__(kThreads)
    moments_finish(const C* __restrict__ partial, C* __restrict__ stats, index_t rows, index_t channels,
                   index_t rows_per_block, double eps) {
  const index_t channel = grid_rank<kThreads>();
  if (channel >= channels) return;
  double total[3] = {0, 0, 0};
  for (index_t first = 0, block = 0; first < rows; first += rows_per_block, ++block) {
    const index_t count = first + rows_per_block < rows ? rows_per_block : rows - first;
    const double part[3] = {static_cast<double>(count), static_cast<double>(partial[2 * block * channels + channel]),
                            static_cast<double>(partial[(2 * block + 1) * channels + channel])};
    merge_moments(total, part);
  }
  const double count = static_cast<double>(rows);
  stats[channel] = static_cast<C>(total[1]);
  stats[channels + channel] = static_cast<C>(1 / sqrt(total[2] / count + eps));
  stats[2 * channels + channel] = static_cast<C>(rows > 1 ? total[2] / (count - 1) : total[2]);
}

// z from x, elementwise: element i belongs to channel i % channels; a null weight stands for no norm.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    norm_act(const T* __restrict__ x, const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ bias,
             const compute_t<T>* __restrict__ stats, T* __restrict__ z, index_t count, index_t channels, index_t act) {
  using C = compute_t<T>;
  const Before<C> before{weight, bias, stats, channels, static_cast<int>(act)};
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>())
    z[i] = narrow<T>(before.of(split(i, channels).rest)(widen(x[i])));
}

// partial [row blocks][2][channels]: sums of g and g·xhat over the part's rows, g = dz·act'(normalised x).
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    norm_sums(const T* __restrict__ dz, const T* __restrict__ x, const compute_t<T>* __restrict__ weight,
              const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ stats,
              compute_t<T>* __restrict__ partial, index_t rows, index_t channels, index_t rows_per_block, index_t act) {
  using C = compute_t<T>;
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
}

// partial [row blocks][channels]: sums of x over the part's rows.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    column_sums(const T* __restrict__ x, compute_t<T>* __restrict__ partial, index_t rows, index_t channels,
                index_t rows_per_block) {
  using C = compute_t<T>;
  const index_t first = block_x() * rows_per_block;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<1, C>(
      first, last, block_y() * kColumnLanes, channels, {C(0)},
      [&](C(&state)[1], index_t row, index_t channel) { state[0] += widen(x[row * channels + channel]); }, AddWords(),
      [&](const C(&state)[1], index_t channel) { partial[block_x() * channels + channel] = state[0]; });
}

// sums [words] of partial [blocks][words], in the order of the blocks, in double.
template <class C, int kThreads>
__global__ void __launch_bounds__(kThreads)
    sum_blocks(const C* __restrict__ partial, C* __restrict__ sums, index_t blocks, index_t words) {
  const index_t i = grid_rank<kThreads>();
  if (i >= words) return;
  double total = 0;
  for (index_t block = 0; block < blocks; ++block) total += static_cast<double>(partial[block * words + i]);
  sums[i] = static_cast<C>(total);
}

// dx = weight·invstd·(g - (sum g + xhat·sum g·xhat) / rows); without batch statistics (null sums) the sums drop out; a
// null weight stands for no norm.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    norm_grad(const T* __restrict__ dz, const T* __restrict__ x, const compute_t<T>* __restrict__ weight,
              const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ stats,
              const compute_t<T>* __restrict__ sums, T* __restrict__ dx, index_t count, index_t channels, index_t act) {
  using C = compute_t<T>;
  const C share = C(1) / static_cast<C>(count / channels);
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const index_t channel = split(i, channels).rest;
    const C grad = widen(dz[i]), value = widen(x[i]);
    if (!weight) {
      dx[i] = narrow<T>(activate_grad(static_cast<int>(act), grad, value));
      continue;
    }
    const C xhat = (value - stats[channel]) * stats[channels + channel];
    C g = activate_grad(static_cast<int>(act), grad, xhat * weight[channel] + bias[channel]);
    if (sums) g -= (sums[channel] + xhat * sums[channels + channel]) * share;
    dx[i] = narrow<T>(g * stats[channels + channel] * weight[channel]);
  }
}

}  // namespace ff::cuda
