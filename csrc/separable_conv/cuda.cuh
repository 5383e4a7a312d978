// SPDX-License-Identifier: Apache-2.0
// Depthwise and pointwise convolution, NHWC: both may normalise and activate what they read, so that no such copy of an
// activation is written. Weights are taken as torch has them, in the compute type; operands of the pointwise product
// are rounded to S: T, or tf32 for float.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/gemm.cuh"
#include "cuda/normalise.cuh"

namespace ff::cuda {

// One side of the tiles of pixels that a block of 32 channels by 8 warps makes.
constexpr int kPixels = 8;

// What a block of the tiled kernels takes: a tile of pixels and a group of channels, of every `image_parts`-th image.
struct Tile {
  index_t column, row, group, image_part, tiles, groups;

  __device__ __forceinline__ Tile(index_t channels, index_t height, index_t width)
      : groups((channels + kColumnLanes - 1) / kColumnLanes) {
    const index_t columns = (width + kPixels - 1) / kPixels, rows = (height + kPixels - 1) / kPixels;
    const Split line = split(block_x(), columns), at = split(line.whole, rows), which = split(at.whole, groups);
    column = line.rest, row = at.rest, group = which.rest, image_part = which.whole, tiles = columns * rows;
  }
  // The tile's number among all that have the same channels.
  __device__ __forceinline__ index_t part(index_t width) const {
    return (image_part * (tiles / ((width + kPixels - 1) / kPixels)) + row) * ((width + kPixels - 1) / kPixels) +
           column;
  }
};

// Blocks that a multiprocessor holds at least: a bound on registers, of which 25 taps of double take 50.
template <class T, int k>
constexpr int kDepthwiseBlocks = sizeof(T) == 8 && k == 5 ? 1 : 2;

// y from tiles of x with their halo in shared memory, each element read from global memory once a tile: k x k, stride s
// known to the compiler. A norm and an activation may follow y; or its statistics are gathered.
template <class T, int k, int s>
__global__ void __launch_bounds__(kColumnThreads, kDepthwiseBlocks<T, k>)
    depthwise_tile(const T* __restrict__ x, const compute_t<T>* __restrict__ n_weight,
                   const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ n_stats,
                   const compute_t<T>* __restrict__ n_var, double n_eps, const compute_t<T>* __restrict__ weight,
                   const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ a_weight,
                   const compute_t<T>* __restrict__ a_bias, const compute_t<T>* __restrict__ a_stats,
                   const compute_t<T>* __restrict__ a_var, double a_eps, T* __restrict__ y, compute_t<T>* partial,
                   compute_t<T>* __restrict__ stats, unsigned* tickets, double eps, index_t act, index_t a_act,
                   index_t images, index_t image_parts, index_t height, index_t width, index_t channels, index_t oh,
                   index_t ow, index_t top, index_t left) {
  using C = compute_t<T>;
  constexpr int kHalo = (kPixels - 1) * s + k;
  FF_SHARED(C, tile, kHalo * kHalo * kColumnLanes);
  FF_SHARED(double, states, kColumnThreads);
  const Tile at(channels, oh, ow);
  const index_t channel = at.group * kColumnLanes + lane_rank();
  const index_t row0 = at.row * kPixels, column0 = at.column * kPixels, row = row0 + warp_rank();
  const ChannelNorm<C> norm =
      NormOnLoad<C>{n_weight, n_bias, n_stats, n_var, n_eps, channels, static_cast<int>(act)}.of(channel);
  const ChannelNorm<C> after =
      NormOnLoad<C>{a_weight, a_bias, a_stats, a_var, a_eps, channels, static_cast<int>(a_act)}.of(channel);
  const bool writes = channel < channels && row < oh;
  C taps[k * k], state[3] = {};
#pragma unroll
  for (int i = 0; i < k * k; ++i) taps[i] = channel < channels ? weight[channel * (k * k) + i] : C(0);
  const C start = bias && channel < channels ? bias[channel] : C(0);
  for (index_t image = at.image_part; image < images; image += image_parts) {
    const T* const source = x + image * height * width * channels + channel;
    for (int i = warp_rank(); i < kHalo * kHalo; i += kColumnWarps) {
      const index_t from = row0 * s - top + i / kHalo, column = column0 * s - left + i % kHalo;
      const bool inside = from >= 0 && from < height && column >= 0 && column < width && channel < channels;
      tile[i * kColumnLanes + lane_rank()] = inside ? norm(widen(source[(from * width + column) * channels])) : C(0);
    }
    sync();
    T* const target = y + ((image * oh + row) * ow + column0) * channels + channel;
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      if (!writes || column0 + j >= ow) break;
      C sum = start;
#pragma unroll
      for (int p = 0; p < k; ++p)
#pragma unroll
        for (int q = 0; q < k; ++q)
          sum += tile[((warp_rank() * s + p) * kHalo + j * s + q) * kColumnLanes + lane_rank()] * taps[p * k + q];
      if (partial) add_moment(state, sum);
      target[j * channels] = narrow<T>(after(sum));
    }
    sync();
  }
  if (!partial) return;
  const Gathered<C> out{partial, stats, tickets + at.group, channels, eps};
  join_groups<3, kColumnThreads, C>(state, kColumnLanes, tile, MergeMoments());
  if (warp_rank() == 0 && channel < channels) out.put(at.part(ow), channel, state);
  const index_t parts = at.tiles * image_parts;
  if (last_block(out.tickets, parts)) out.template finish<kColumnThreads>(parts, at.group * kColumnLanes, states);
}

// y of any kernel and stride, a thread an element: for windows that do not overlap, nothing is read twice.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 3)
    depthwise_any(const T* __restrict__ x, const compute_t<T>* __restrict__ n_weight,
                  const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ n_stats,
                  const compute_t<T>* __restrict__ n_var, double n_eps, const compute_t<T>* __restrict__ weight,
                  const compute_t<T>* __restrict__ bias, T* __restrict__ y, index_t act, index_t count, index_t height,
                  index_t width, index_t channels, index_t oh, index_t ow, index_t kh, index_t kw, index_t sh,
                  index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  const NormOnLoad<C> on_load{n_weight, n_bias, n_stats, n_var, n_eps, channels, static_cast<int>(act)};
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, ow), image = split(line.whole, oh);
    const ChannelNorm<C> norm = on_load.of(pixel.rest);
    C sum = bias ? bias[pixel.rest] : C(0);
    for (index_t p = 0; p < kh; ++p)
#pragma unroll 1  // the branches of an activation once
      for (index_t q = 0; q < kw; ++q) {
        const index_t row = image.rest * sh + p - top, column = line.rest * sw + q - left;
        if (row >= 0 && row < height && column >= 0 && column < width)
          sum += norm(widen(x[((image.whole * height + row) * width + column) * channels + pixel.rest])) *
                 weight[(pixel.rest * kh + p) * kw + q];
      }
    y[i] = narrow<T>(sum);
  }
}

// dx, and partial [blocks][k·k][channels] of dw, from tiles of x and of dy with its halo: dy is in shared memory, x,
// normalised, in a register, and each product of the two goes into both gradients' sums. Either target may be null; dx
// is the gradient of the normalised x.
template <class T, int k, int s>
__global__ void __launch_bounds__(kColumnThreads, k == 3 ? 2 : 1)
    depthwise_bwd_tile(const T* __restrict__ dy, const T* __restrict__ x, const compute_t<T>* __restrict__ n_weight,
                       const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ n_stats,
                       const compute_t<T>* __restrict__ n_var, double n_eps, const compute_t<T>* __restrict__ weight,
                       T* __restrict__ dx, compute_t<T>* __restrict__ partial, index_t act, index_t images,
                       index_t image_parts, index_t height, index_t width, index_t channels, index_t oh, index_t ow,
                       index_t top, index_t left) {
  using C = compute_t<T>;
  constexpr int kHalo = (kPixels + k - 2) / s + 2;  // outputs that the tile's inputs may reach, wherever it begins
  constexpr int kWords = kHalo * kHalo > k * k * kColumnWarps ? kHalo * kHalo : k * k * kColumnWarps;
  FF_SHARED(C, tile, kWords * kColumnLanes);  // dy's halo, then the warps' parts of dw
  const Tile at(channels, height, width);
  const index_t channel = at.group * kColumnLanes + lane_rank();
  const index_t row0 = at.row * kPixels, column0 = at.column * kPixels, row = row0 + warp_rank();
  const auto first_output = [](index_t i) { return i <= 0 ? 0 : (i + s - 1) / s; };
  const index_t out_row0 = first_output(row0 + top - k + 1), out_column0 = first_output(column0 + left - k + 1);
  const ChannelNorm<C> norm =
      NormOnLoad<C>{n_weight, n_bias, n_stats, n_var, n_eps, channels, static_cast<int>(act)}.of(channel);
  C taps[k * k], sums[k * k];
#pragma unroll
  for (int i = 0; i < k * k; ++i) {
    taps[i] = channel < channels ? weight[channel * (k * k) + i] : C(0);
    sums[i] = C(0);
  }
  for (index_t image = at.image_part; image < images; image += image_parts) {
    for (int i = warp_rank(); i < kHalo * kHalo; i += kColumnWarps) {
      const index_t from = out_row0 + i / kHalo, column = out_column0 + i % kHalo;
      const bool inside = from < oh && column < ow && channel < channels;
      tile[i * kColumnLanes + lane_rank()] =
          inside ? widen(dy[((image * oh + from) * ow + column) * channels + channel]) : C(0);
    }
    sync();
    if (channel < channels && row < height)
      for (index_t column = column0; column < column0 + kPixels && column < width; ++column) {
        const index_t element = ((image * height + row) * width + column) * channels + channel;
        const C value = partial ? norm(widen(x[element])) : C(0);
        C sum = C(0);
#pragma unroll
        for (int p = 0; p < k; ++p)
#pragma unroll
          for (int q = 0; q < k; ++q) {
            const int down = static_cast<int>(row + top) - p, right = static_cast<int>(column + left) - q;
            if (down < 0 || right < 0 || down % s || right % s || down / s >= oh || right / s >= ow) continue;
            const C grad = tile[((down / s - out_row0) * kHalo + right / s - out_column0) * kColumnLanes + lane_rank()];
            sum += grad * taps[p * k + q];
            sums[p * k + q] += grad * value;
          }
        if (dx) dx[element] = narrow<T>(sum);
      }
    sync();
  }
  if (!partial) return;
#pragma unroll
  for (int i = 0; i < k * k; ++i) tile[(warp_rank() * k * k + i) * kColumnLanes + lane_rank()] = sums[i];
  sync();
  if (channel >= channels) return;
  for (int i = warp_rank(); i < k * k; i += kColumnWarps) {
    C total = C(0);
    for (int warp = 0; warp < kColumnWarps; ++warp) total += tile[(warp * k * k + i) * kColumnLanes + lane_rank()];
    partial[(at.part(width) * k * k + i) * channels + channel] = total;
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
               weight[(pixel.rest * kh + p) * kw + q];
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
                             const compute_t<T>* __restrict__ n_stats, const compute_t<T>* __restrict__ n_var,
                             double n_eps, compute_t<T>* __restrict__ partial, index_t act, index_t rows,
                             index_t channels, index_t rows_per_block, index_t height, index_t width, index_t oh,
                             index_t ow, index_t kw, index_t sh, index_t sw, index_t top, index_t left, index_t taps) {
  using C = compute_t<T>;
  const ChannelNorm<C> norm =
      NormOnLoad<C>{n_weight, n_bias, n_stats, n_var, n_eps, channels, static_cast<int>(act)}.of(
          channel_of_thread(block_y() * kColumnLanes, channels));
  const index_t first = block_x() * rows_per_block, p = block_z() / kw, q = block_z() % kw;
  const index_t last = first + rows_per_block < rows ? first + rows_per_block : rows;
  reduce_columns<1, C>(
      first, last, block_y() * kColumnLanes, channels, {C(0)},
      [&](C(&state)[1], index_t pixel, index_t channel) {
        const Split line = split(pixel, ow), image = split(line.whole, oh);
        const index_t row = image.rest * sh + p - top, column = line.rest * sw + q - left;
        if (row >= 0 && row < height && column >= 0 && column < width)
          state[0] += widen(dy[pixel * channels + channel]) *
                      norm(widen(x[((image.whole * height + row) * width + column) * channels + channel]));
      },
      AddWords(),
      [&](const C(&state)[1], index_t channel) {
        partial[(block_x() * taps + block_z()) * channels + channel] = state[0];
      });
}

// y2 (rows, o) = act(norm(y1)) times weight (o, c) + bias, and what `Output` does with it.
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    pointwise_fwd(const T* __restrict__ y1, const compute_t<T>* __restrict__ n_weight,
                  const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ n_stats,
                  const compute_t<T>* __restrict__ n_var, double n_eps, const compute_t<T>* __restrict__ weight,
                  const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ a_weight,
                  const compute_t<T>* __restrict__ a_bias, const compute_t<T>* __restrict__ a_stats,
                  const compute_t<T>* __restrict__ a_var, double a_eps, T* __restrict__ y2, compute_t<T>* partial,
                  compute_t<T>* __restrict__ stats, unsigned* tickets, double eps, index_t act, index_t a_act,
                  index_t rows, index_t channels, index_t outputs) {
  const Output<T> out{y2,
                      bias,
                      {a_weight, a_bias, a_stats, a_var, a_eps, outputs, static_cast<int>(a_act)},
                      {partial, stats, tickets, outputs, eps}};
  matmul_rows<Along::k, Along::k, S>(
      rows, channels, Normalised<T>{y1, {n_weight, n_bias, n_stats, n_var, n_eps, channels, static_cast<int>(act)}},
      [&](index_t k, index_t n) { return weight[n * channels + k]; }, out);
}

// out = act2(norm2(pointwise(act1(norm1(depthwise(x)))))) with running statistics, k x k kernel of stride s: a block
// makes 64 outputs of the 8 x 8 pixels of a tile, the channels in stages whose part of x, with its halo, lies in shared
// memory. blockIdx: tile, outputs.
template <class T, class S, int k, int s>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    separable_tile(const T* __restrict__ x, const compute_t<T>* __restrict__ taps,
                   const compute_t<T>* __restrict__ dw_bias, const compute_t<T>* __restrict__ n1_weight,
                   const compute_t<T>* __restrict__ n1_bias, const compute_t<T>* __restrict__ n1_stats,
                   const compute_t<T>* __restrict__ n1_var, double n1_eps, const compute_t<T>* __restrict__ weight,
                   const compute_t<T>* __restrict__ pw_bias, const compute_t<T>* __restrict__ n2_weight,
                   const compute_t<T>* __restrict__ n2_bias, const compute_t<T>* __restrict__ n2_stats,
                   const compute_t<T>* __restrict__ n2_var, double n2_eps, T* __restrict__ out, index_t act1,
                   index_t act2, index_t height, index_t width, index_t channels, index_t oh, index_t ow,
                   index_t outputs, index_t top, index_t left) {
  using C = compute_t<T>;
  constexpr int kHalo = (kPixels - 1) * s + k, kChannels = kStage<S>;
  static_assert(kPixels * kPixels == kTile, "a tile's pixels are the rows of a product");
  FF_SHARED(T, tile, kHalo * kHalo * kChannels);
  FF_SHARED(C, stage_taps, k * k * kChannels);
  const NormOnLoad<C> between{n1_weight, n1_bias, n1_stats, n1_var, n1_eps, channels, static_cast<int>(act1)};
  const NormOnLoad<C> after{n2_weight, n2_bias, n2_stats, n2_var, n2_eps, outputs, static_cast<int>(act2)};
  const Split line = split(block_x(), (ow + kPixels - 1) / kPixels);
  const Split image = split(line.whole, (oh + kPixels - 1) / kPixels);
  const index_t row0 = image.rest * kPixels, column0 = line.rest * kPixels;
  matmul_tile<Along::k, Along::k, S>(
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
      [&](index_t channel, index_t n) { return weight[n * channels + channel]; },
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
          stage_taps[i] = channel < channels ? taps[channel * (k * k) + i / kChannels] : C(0);
        }
        sync();
      });
}

// partial [parts][o][c] = dy2 transposed times act(norm(y1)), over each part of the rows.
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    pointwise_bwd_weight(const T* __restrict__ y1, const compute_t<T>* __restrict__ n_weight,
                         const compute_t<T>* __restrict__ n_bias, const compute_t<T>* __restrict__ n_stats,
                         const compute_t<T>* __restrict__ n_var, double n_eps, const T* __restrict__ dy2,
                         compute_t<T>* __restrict__ partial, index_t rows, index_t rows_per_part, index_t channels,
                         index_t outputs, index_t act) {
  using C = compute_t<T>;
  const Normalised<T> a1{y1, {n_weight, n_bias, n_stats, n_var, n_eps, channels, static_cast<int>(act)}};
  const index_t first = block_z() * rows_per_part, last = first + rows_per_part < rows ? first + rows_per_part : rows;
  C* const target = partial + block_z() * channels * outputs;
  matmul_tile<Along::other, Along::other, S>(
      block_x() * kTile, block_y() * kTile, outputs, channels, first, last,
      [&](index_t m, index_t k) { return widen(dy2[k * outputs + m]); }, a1,
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_part(sums, m, n, outputs, channels, target);
      });
}

// da1 (rows, c) = dy2 times weight (o, c).
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    pointwise_bwd_input(const T* __restrict__ dy2, const compute_t<T>* __restrict__ weight, T* __restrict__ da1,
                        index_t rows, index_t channels, index_t outputs) {
  using C = compute_t<T>;
  matmul_tile<Along::k, Along::other, S>(
      block_x() * kTile, block_y() * kTile, rows, channels, 0, outputs,
      [&](index_t m, index_t k) { return widen(dy2[m * outputs + k]); },
      [&](index_t k, index_t n) { return weight[k * channels + n]; },
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_part(sums, m, n, rows, channels, da1);
      });
}

}  // namespace ff::cuda
