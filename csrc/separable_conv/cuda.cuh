// SPDX-License-Identifier: Apache-2.0
// Depthwise and pointwise convolution, NHWC: both may normalise and activate what they read, so that no such copy of an
// activation is written. Depthwise weights are packed (kh, kw, c) by the caller; operands of the pointwise product are
// rounded to S: T, or tf32 for float.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/gemm.cuh"
#include "cuda/normalise.cuh"

namespace ff::cuda {

// One side of the tiles of pixels that a block of 32 channels by 8 warps makes.
constexpr int kPixels = 8;

// y from a tile of x with its halo in shared memory, each element read from global memory once a tile: k x k, stride s
// known to the compiler. blockIdx: tile column, tile row, image times channel groups.
template <class T, int k, int s>
__global__ void __launch_bounds__(kColumnThreads, 2)
    depthwise_tile(const T* __restrict__ x, const compute_t<T>* __restrict__ n_weight,
                   const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ stats,
                   const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ bias, T* __restrict__ y,
                   index_t act, index_t height, index_t width, index_t channels, index_t oh, index_t ow, index_t top,
                   index_t left) {
  using C = compute_t<T>;
  constexpr int kHalo = (kPixels - 1) * s + k;
  FF_SHARED(C, tile, kHalo * kHalo * kColumnLanes);
  const index_t groups = (channels + kColumnLanes - 1) / kColumnLanes;
  const index_t image = block_z() / groups, channel = block_z() % groups * kColumnLanes + lane_rank();
  const index_t row0 = block_y() * kPixels, column0 = block_x() * kPixels;
  const ChannelNorm<C> norm = Before<C>{n_weight, n_bias, stats, channels, static_cast<int>(act)}.of(channel);
  for (int i = warp_rank(); i < kHalo * kHalo; i += kColumnWarps) {
    const index_t row = row0 * s - top + i / kHalo, column = column0 * s - left + i % kHalo;
    const bool inside = row >= 0 && row < height && column >= 0 && column < width && channel < channels;
    tile[i * kColumnLanes + lane_rank()] =
        inside ? norm(widen(x[((image * height + row) * width + column) * channels + channel])) : C(0);
  }
  sync();
  const index_t row = row0 + warp_rank();
  if (channel >= channels || row >= oh) return;
  C taps[k * k];
#pragma unroll
  for (int i = 0; i < k * k; ++i) taps[i] = weight[i * channels + channel];
  const C start = bias ? bias[channel] : C(0);
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    if (column0 + j >= ow) break;
    C sum = start;
#pragma unroll
    for (int p = 0; p < k; ++p)
#pragma unroll
      for (int q = 0; q < k; ++q)
        sum += tile[((warp_rank() * s + p) * kHalo + j * s + q) * kColumnLanes + lane_rank()] * taps[p * k + q];
    y[((image * oh + row) * ow + column0 + j) * channels + channel] = narrow<T>(sum);
  }
}

// y of any kernel and stride, a thread an element: for windows that do not overlap, nothing is read twice.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 3)
    depthwise_any(const T* __restrict__ x, const compute_t<T>* __restrict__ n_weight,
                  const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ stats,
                  const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ bias, T* __restrict__ y,
                  index_t act, index_t count, index_t height, index_t width, index_t channels, index_t oh, index_t ow,
                  index_t kh, index_t kw, index_t sh, index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  const Before<C> before{n_weight, n_bias, stats, channels, static_cast<int>(act)};
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, ow), image = split(line.whole, oh);
    const ChannelNorm<C> norm = before.of(pixel.rest);
    C sum = bias ? bias[pixel.rest] : C(0);
    for (index_t p = 0; p < kh; ++p)
#pragma unroll 1  // the branches of an activation once
      for (index_t q = 0; q < kw; ++q) {
        const index_t row = image.rest * sh + p - top, column = line.rest * sw + q - left;
        if (row >= 0 && row < height && column >= 0 && column < width)
          sum += norm(widen(x[((image.whole * height + row) * width + column) * channels + pixel.rest])) *
                 weight[(p * kw + q) * channels + pixel.rest];
      }
    y[i] = narrow<T>(sum);
  }
}

// dx, and partial [blocks][k·k][channels] of dw, from one tile of x and of dy with its halo: dy is in shared memory, x,
// normalised, in a register, and each product of the two goes into both gradients' sums. Either target may be null; dx
// is the gradient of the normalised x.
template <class T, int k, int s>
__global__ void __launch_bounds__(kColumnThreads, k == 3 ? 2 : 1)
    depthwise_bwd_tile(const T* __restrict__ dy, const T* __restrict__ x, const compute_t<T>* __restrict__ n_weight,
                       const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ stats,
                       const compute_t<T>* __restrict__ weight, T* __restrict__ dx, compute_t<T>* __restrict__ partial,
                       index_t act, index_t height, index_t width, index_t channels, index_t oh, index_t ow,
                       index_t top, index_t left) {
  using C = compute_t<T>;
  constexpr int kHalo = (kPixels + k - 2) / s + 2;  // outputs that the tile's inputs may reach, wherever it begins
  constexpr int kWords = kHalo * kHalo > k * k * kColumnWarps ? kHalo * kHalo : k * k * kColumnWarps;
  FF_SHARED(C, tile, kWords * kColumnLanes);  // dy's halo, then the warps' parts of dw
  const index_t groups = (channels + kColumnLanes - 1) / kColumnLanes;
  const index_t image = block_z() / groups, channel = block_z() % groups * kColumnLanes + lane_rank();
  const index_t row0 = block_y() * kPixels, column0 = block_x() * kPixels;
  const auto first_output = [](index_t i) { return i <= 0 ? 0 : (i + s - 1) / s; };
  const index_t out_row0 = first_output(row0 + top - k + 1), out_column0 = first_output(column0 + left - k + 1);
  for (int i = warp_rank(); i < kHalo * kHalo; i += kColumnWarps) {
    const index_t row = out_row0 + i / kHalo, column = out_column0 + i % kHalo;
    const bool inside = row < oh && column < ow && channel < channels;
    tile[i * kColumnLanes + lane_rank()] =
        inside ? widen(dy[((image * oh + row) * ow + column) * channels + channel]) : C(0);
  }
  sync();
  C taps[k * k], sums[k * k];
#pragma unroll
  for (int i = 0; i < k * k; ++i) taps[i] = channel < channels ? weight[i * channels + channel] : C(0), sums[i] = C(0);
  const index_t row = row0 + warp_rank();
  const ChannelNorm<C> norm = Before<C>{n_weight, n_bias, stats, channels, static_cast<int>(act)}.of(channel);
  if (channel < channels && row < height)
    for (index_t column = column0; column < column0 + kPixels && column < width; ++column) {
      const index_t at = ((image * height + row) * width + column) * channels + channel;
      const C value = partial ? norm(widen(x[at])) : C(0);
      C sum = C(0);
#pragma unroll
      for (int p = 0; p < k; ++p)
#pragma unroll
        for (int q = 0; q < k; ++q) {
          const index_t down = row + top - p, right = column + left - q;
          if (down < 0 || right < 0 || down % s || right % s || down / s >= oh || right / s >= ow) continue;
          const C grad = tile[((down / s - out_row0) * kHalo + right / s - out_column0) * kColumnLanes + lane_rank()];
          sum += grad * taps[p * k + q];
          sums[p * k + q] += grad * value;
        }
      if (dx) dx[at] = narrow<T>(sum);
    }
  if (!partial) return;
  sync();
#pragma unroll
  for (int i = 0; i < k * k; ++i) tile[(warp_rank() * k * k + i) * kColumnLanes + lane_rank()] = sums[i];
  sync();
  if (channel >= channels) return;
  const index_t block =
      (image * ((height + kPixels - 1) / kPixels) + block_y()) * ((width + kPixels - 1) / kPixels) + block_x();
  for (int i = warp_rank(); i < k * k; i += kColumnWarps) {
    C total = C(0);
    for (int warp = 0; warp < kColumnWarps; ++warp) total += tile[(warp * k * k + i) * kColumnLanes + lane_rank()];
    partial[(block * k * k + i) * channels + channel] = total;
  }
}

// dx of any kernel and stride, a thread an element.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 4)
    depthwise_bwd_input_any(const T* __restrict__ dy, const compute_t<T>* __restrict__ weight, T* __restrict__ dx,
                            index_t count, index_t height, index_t width, index_t channels, index_t oh, index_t ow,
                            index_t kh, index_t kw, index_t sh, index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, width), image = split(line.whole, height);
    C sum = C(0);
    for (index_t p = 0; p < kh; ++p) {
      if (image.rest + top < p) break;
      const Split row = split(image.rest + top - p, sh);
      if (row.rest || row.whole >= oh) continue;
      for (index_t q = 0; q < kw; ++q) {
        if (line.rest + left < q) break;
        const Split column = split(line.rest + left - q, sw);
        if (column.rest || column.whole >= ow) continue;
        sum += widen(dy[((image.whole * oh + row.whole) * ow + column.whole) * channels + pixel.rest]) *
               weight[(p * kw + q) * channels + pixel.rest];
      }
    }
    dx[i] = narrow<T>(sum);
  }
}

// partial [row blocks][channels] of dw at tap blockIdx.z, partial [taps][row blocks][channels]; rows are those of dy.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    depthwise_bwd_weight_any(const T* __restrict__ dy, const T* __restrict__ x,
                             const compute_t<T>* __restrict__ n_weight, const compute_t<T>* __restrict__ n_bias,
                             const compute_t<T>* __restrict__ stats, compute_t<T>* __restrict__ partial, index_t act,
                             index_t rows, index_t channels, index_t rows_per_block, index_t height, index_t width,
                             index_t oh, index_t ow, index_t kw, index_t sh, index_t sw, index_t top, index_t left,
                             index_t taps) {
  using C = compute_t<T>;
  const Normalised<T> a{x, {n_weight, n_bias, stats, channels, static_cast<int>(act)}};
  const index_t first = block_x() * rows_per_block, p = block_z() / kw, q = block_z() % kw;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<1, C>(
      first, last, block_y() * kColumnLanes, channels, {C(0)},
      [&](C(&state)[1], index_t pixel, index_t channel) {
        const Split line = split(pixel, ow), image = split(line.whole, oh);
        const index_t row = image.rest * sh + p - top, column = line.rest * sw + q - left;
        if (row >= 0 && row < height && column >= 0 && column < width)
          state[0] += widen(dy[pixel * channels + channel]) * a((image.whole * height + row) * width + column, channel);
      },
      AddWords(),
      [&](const C(&state)[1], index_t channel) {
        partial[(block_x() * taps + block_z()) * channels + channel] = state[0];
      });
}

// y2 (rows, o) = act(norm(y1)) times weight (c, o) + bias, and unless null the moments of y2's tiles.
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    pointwise_fwd(const T* __restrict__ y1, const compute_t<T>* __restrict__ n_weight,
                  const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ stats,
                  const T* __restrict__ weight, const compute_t<T>* __restrict__ bias, T* __restrict__ y2,
                  compute_t<T>* __restrict__ partial, index_t rows, index_t channels, index_t outputs, index_t act) {
  using C = compute_t<T>;
  matmul_tile<Along::k, Along::other, S>(
      block_x() * kTile, block_y() * kTile, rows, outputs, 0, channels,
      Normalised<T>{y1, {n_weight, n_bias, stats, channels, static_cast<int>(act)}},
      [&](index_t k, index_t n) { return widen(weight[k * outputs + n]); },
      [&](C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_output(sums, m, n, rows, outputs, bias, y2, partial);
      });
}

// out = act2(norm2(pointwise(act1(norm1(depthwise(x)))))) with running statistics, k x k kernel of stride s: a block
// makes 64 outputs of the 8 x 8 pixels of a tile, the channels in stages whose part of x, with its halo, lies in shared
// memory. blockIdx: tile, outputs.
template <class T, class S, int k, int s>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    separable_tile(const T* __restrict__ x, const compute_t<T>* __restrict__ taps,
                   const compute_t<T>* __restrict__ dw_bias, const compute_t<T>* __restrict__ n1_weight,
                   const compute_t<T>* __restrict__ n1_bias, const compute_t<T>* __restrict__ stats1,
                   const T* __restrict__ weight, const compute_t<T>* __restrict__ pw_bias,
                   const compute_t<T>* __restrict__ n2_weight, const compute_t<T>* __restrict__ n2_bias,
                   const compute_t<T>* __restrict__ stats2, T* __restrict__ out, index_t act1, index_t act2,
                   index_t height, index_t width, index_t channels, index_t oh, index_t ow, index_t outputs,
                   index_t top, index_t left) {
  using C = compute_t<T>;
  constexpr int kHalo = (kPixels - 1) * s + k, kChannels = kStage<S>;
  static_assert(kPixels * kPixels == kTile, "a tile's pixels are the rows of a product");
  FF_SHARED(T, tile, kHalo * kHalo * kChannels);
  FF_SHARED(C, stage_taps, k * k * kChannels);
  const Before<C> between{n1_weight, n1_bias, stats1, channels, static_cast<int>(act1)};
  const Before<C> after{n2_weight, n2_bias, stats2, outputs, static_cast<int>(act2)};
  const Split line = split(block_x(), (ow + kPixels - 1) / kPixels);
  const Split image = split(line.whole, (oh + kPixels - 1) / kPixels);
  const index_t row0 = image.rest * kPixels, column0 = line.rest * kPixels;
  matmul_tile<Along::k, Along::other, S>(
      0, block_y() * kTile, kTile, outputs, 0, channels,
      [&](index_t m, index_t channel) {
        const int at = static_cast<int>(channel % kChannels), i = static_cast<int>(m);
        C sum = dw_bias ? dw_bias[channel] : C(0);
#pragma unroll
        for (int p = 0; p < k; ++p)
#pragma unroll
          for (int q = 0; q < k; ++q) {
            const T value = tile[((i / kPixels * s + p) * kHalo + i % kPixels * s + q) * kChannels + at];
            sum += widen(value) * stage_taps[(p * k + q) * kChannels + at];
          }
        return between.of(channel)(sum);
      },
      [&](index_t channel, index_t n) { return widen(weight[channel * outputs + n]); },
      [&](C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        for_part(sums, m, n, kTile, outputs, [&](index_t i, index_t output, C sum) {
          const index_t row = row0 + i / kPixels, column = column0 + i % kPixels;
          if (row >= oh || column >= ow) return;
          const C y = pw_bias ? sum + pw_bias[output] : sum;
          out[((image.whole * oh + row) * ow + column) * outputs + output] = narrow<T>(after.of(output)(y));
        });
      },
      [&](index_t first) {
        for (int i = thread_rank(); i < kHalo * kHalo * kChannels; i += kGemmThreads) {
          const int pixel = i / kChannels;
          const index_t row = row0 * s - top + pixel / kHalo, column = column0 * s - left + pixel % kHalo;
          const index_t channel = first + i % kChannels;
          const bool inside = row >= 0 && row < height && column >= 0 && column < width && channel < channels;
          tile[i] = inside ? x[((image.whole * height + row) * width + column) * channels + channel] : T{};
        }
        for (int i = thread_rank(); i < k * k * kChannels; i += kGemmThreads) {
          const index_t channel = first + i % kChannels;
          stage_taps[i] = channel < channels ? taps[i / kChannels * channels + channel] : C(0);
        }
        sync();
      });
}

// partial [parts][c][o] = act(norm(y1)) transposed times dy2, over each part of the rows.
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    pointwise_bwd_weight(const T* __restrict__ y1, const compute_t<T>* __restrict__ n_weight,
                         const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ stats,
                         const T* __restrict__ dy2, compute_t<T>* __restrict__ partial, index_t rows,
                         index_t rows_per_part, index_t channels, index_t outputs, index_t act) {
  using C = compute_t<T>;
  const Normalised<T> a1{y1, {n_weight, n_bias, stats, channels, static_cast<int>(act)}};
  const index_t first = block_z() * rows_per_part, last = first + rows_per_part < rows ? first + rows_per_part : rows;
  C* const target = partial + block_z() * channels * outputs;
  matmul_tile<Along::other, Along::other, S>(
      block_x() * kTile, block_y() * kTile, channels, outputs, first, last,
      [&](index_t m, index_t k) { return a1(k, m); }, [&](index_t k, index_t n) { return widen(dy2[k * outputs + n]); },
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_part(sums, m, n, channels, outputs, target);
      });
}

// da1 (rows, c) = dy2 times weight (o, c).
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    pointwise_bwd_input(const T* __restrict__ dy2, const T* __restrict__ weight, T* __restrict__ da1, index_t rows,
                        index_t channels, index_t outputs) {
  using C = compute_t<T>;
  matmul_tile<Along::k, Along::other, S>(
      block_x() * kTile, block_y() * kTile, rows, channels, 0, outputs,
      [&](index_t m, index_t k) { return widen(dy2[m * outputs + k]); },
      [&](index_t k, index_t n) { return widen(weight[k * channels + n]); },
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_part(sums, m, n, rows, channels, da1);
      });
}

}  // namespace ff::cuda
