// SPDX-License-Identifier: Apache-2.0
// Coordinate attention, NHWC: means and maxima of all rows and columns from one read of x, the product with the gates,
// and backward the sums that their gradients need from one read of (dout, x). What lies by row or column is in the
// compute type: (images · height, channels) and (images · width, channels).
#pragma once

#include "cuda/columns.cuh"

namespace ff::cuda {

// Columns that a block goes down at a time.
constexpr int kStrip = 16;

// A block of 32 channels by 8 warps goes over an image by strips of columns, 8 rows at a time, and reads each element
// once, by load(row, column): a warp keeps a row's state while it reads its part of the strip, and a column's while the
// strip lasts. Row and Column have begin(state, line, fresh), add(state, value, place), and end(state, line, last): a
// row that goes on in the next strip ends and begins again.
template <int kWords, class C, class Load, class Row, class Column>
__device__ __forceinline__ void rows_and_columns(index_t height, index_t width, bool inside, const Load& load,
                                                 const Row& rows, const Column& columns) {
  FF_SHARED(C, tile, kColumnWarps * kStrip * kColumnLanes);
  constexpr int kTurns = kStrip / kColumnWarps;
  for (index_t column0 = 0; column0 < width; column0 += kStrip) {
    const index_t count = column0 + kStrip < width ? kStrip : width - column0;
    C down[kTurns][kWords];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) columns.begin(down[i], 0, true);
    for (index_t row0 = 0; row0 < height; row0 += kColumnWarps) {
      const index_t row = row0 + warp_rank();
      if (inside && row < height) {
        C values[kStrip], along[kWords];
#pragma unroll
        for (int j = 0; j < kStrip; ++j) values[j] = j < count ? load(row, column0 + j) : C(0);
        rows.begin(along, row, column0 == 0);
#pragma unroll
        for (int j = 0; j < kStrip; ++j)
          if (j < count) {
            rows.add(along, values[j], column0 + j);
            tile[(warp_rank() * kStrip + j) * kColumnLanes + lane_rank()] = values[j];
          }
        rows.end(along, row, column0 + kStrip >= width);
      }
      sync();
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int column = i * kColumnWarps + warp_rank();
        if (inside && column < count)
          for (int r = 0; r < kColumnWarps && row0 + r < height; ++r)
            columns.add(down[i], tile[(r * kStrip + column) * kColumnLanes + lane_rank()], row0 + r);
      }
      sync();
    }
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int column = i * kColumnWarps + warp_rank();
      if (inside && column < count) columns.end(down[i], column0 + column, true);
    }
  }
}

// Sum, maximum and its place (-1: none yet) of a line, a channel's; the first of equal maxima, or the first NaN. At the
// end the mean, with `mixed` plus the maximum. Null: not wanted, except that a line in parts needs all it builds on.
template <class C>
struct PoolLine {
  C* mean;
  C* most;
  C* at;
  index_t channels, length;
  bool mixed;

  __device__ __forceinline__ void begin(C (&state)[3], index_t line, bool fresh) const {
    const index_t i = line * channels;
    state[0] = fresh || !mean ? C(0) : mean[i];
    state[1] = fresh || !most ? C(0) : most[i];
    state[2] = fresh ? C(-1) : at ? at[i] : C(0);
  }
  __device__ __forceinline__ void add(C (&state)[3], C value, index_t place) const {
    state[0] += value;
    if (state[2] < C(0) || value > state[1] || (value != value && state[1] == state[1]))
      state[1] = value, state[2] = static_cast<C>(place);
  }
  __device__ __forceinline__ void end(const C (&state)[3], index_t line, bool last) const {
    const index_t i = line * channels;
    if (mean) mean[i] = last ? state[0] / static_cast<C>(length) + (mixed ? state[1] : C(0)) : state[0];
    if (most) most[i] = state[1];
    if (at) at[i] = state[2];
  }
};

// Means and maxima of rows and columns, and the maxima's places along them; block: (image, 32 channels).
template <class T>
__global__ void __launch_bounds__(kColumnThreads, 2)
    coordinate_pool(const T* __restrict__ x, compute_t<T>* row_mean, compute_t<T>* row_most, compute_t<T>* row_at,
                    compute_t<T>* column_mean, compute_t<T>* column_most, compute_t<T>* column_at, index_t height,
                    index_t width, index_t channels, index_t mixed) {
  using C = compute_t<T>;
  const index_t n = block_x(), channel = block_y() * kColumnLanes + lane_rank();
  const index_t row = n * height * channels + channel, column = n * width * channels + channel;
  const auto from = [](C* p, index_t offset) { return p ? p + offset : p; };
  const T* const image = x + n * height * width * channels + channel;
  rows_and_columns<3, C>(
      height, width, channel < channels, [&](index_t r, index_t c) { return widen(image[(r * width + c) * channels]); },
      PoolLine<C>{from(row_mean, row), from(row_most, row), from(row_at, row), channels, width, mixed != 0},
      PoolLine<C>{from(column_mean, column), from(column_most, column), from(column_at, column), channels, height,
                  mixed != 0});
}

// Sum over a line of dout·x times the other direction's gates; at the end the gradient of the line's logit.
template <class C>
struct GateLine {
  C* dlogits;
  const C* gates;
  const C* across;  // the other direction's gates, by place
  index_t channels;

  __device__ __forceinline__ void begin(C (&state)[1], index_t line, bool fresh) const {
    state[0] = fresh ? C(0) : dlogits[line * channels];
  }
  __device__ __forceinline__ void add(C (&state)[1], C value, index_t place) const {
    state[0] += value * across[place * channels];
  }
  __device__ __forceinline__ void end(const C (&state)[1], index_t line, bool last) const {
    const C g = last ? gates[line * channels] : C(0);
    dlogits[line * channels] = last ? state[0] * g * (C(1) - g) : state[0];
  }
};

// Gradients of the logits of rows and columns; block: (image, 32 channels).
template <class T>
__global__ void __launch_bounds__(kColumnThreads, 2)
    coordinate_dlogits(const T* __restrict__ dout, const T* __restrict__ x, const compute_t<T>* __restrict__ row_gates,
                       const compute_t<T>* __restrict__ column_gates, compute_t<T>* row_dlogits,
                       compute_t<T>* column_dlogits, index_t height, index_t width, index_t channels) {
  using C = compute_t<T>;
  const index_t n = block_x(), channel = block_y() * kColumnLanes + lane_rank();
  const index_t row = n * height * channels + channel, column = n * width * channels + channel;
  const index_t image = n * height * width * channels + channel;
  rows_and_columns<1, C>(
      height, width, channel < channels,
      [&](index_t r, index_t c) {
        const index_t i = image + (r * width + c) * channels;
        return widen(dout[i]) * widen(x[i]);
      },
      GateLine<C>{row_dlogits + row, row_gates + row, column_gates + column, channels},
      GateLine<C>{column_dlogits + column, column_gates + column, row_gates + row, channels});
}

// out = x · its row's gate · its column's, by packs of kVec channels.
template <class T, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads)
    coordinate_gate(const T* __restrict__ x, const compute_t<T>* __restrict__ row_gates,
                    const compute_t<T>* __restrict__ column_gates, T* __restrict__ out, index_t count, index_t height,
                    index_t width, index_t channels) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i * kVec, channels), row = split(pixel.whole, width);
    const C* const along = row_gates + row.whole * channels + pixel.rest;
    const C* const down = column_gates + (split(row.whole, height).whole * width + row.rest) * channels + pixel.rest;
    Pack<T, kVec> v = load<kVec>(x + i * kVec, kVec);
#pragma unroll
    for (int k = 0; k < kVec; ++k) v.at[k] = narrow<T>(widen(v.at[k]) * along[k] * down[k]);
    store(out + i * kVec, v, kVec);
  }
}

// A line's pooling backward: the mean's gradient everywhere, the maximum's at its place; both may be null.
template <class C>
struct LineGrad {
  const C* mean;
  const C* most;
  const C* at;
  C share;  // 1 / length

  __device__ __forceinline__ C operator()(index_t i, index_t place) const {
    const C value = mean ? mean[i] * share : C(0);
    return most && at[i] == static_cast<C>(place) ? value + most[i] : value;
  }
};

// dx = dout·gates (dout null: 0) plus what comes through the pooling of rows and columns.
template <class T, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads)
    coordinate_bwd(const T* __restrict__ dout, const compute_t<T>* __restrict__ row_gates,
                   const compute_t<T>* __restrict__ column_gates, const compute_t<T>* __restrict__ row_mean,
                   const compute_t<T>* __restrict__ row_most, const compute_t<T>* __restrict__ row_at,
                   const compute_t<T>* __restrict__ column_mean, const compute_t<T>* __restrict__ column_most,
                   const compute_t<T>* __restrict__ column_at, T* __restrict__ dx, index_t count, index_t height,
                   index_t width, index_t channels) {
  using C = compute_t<T>;
  const LineGrad<C> along{row_mean, row_most, row_at, C(1) / static_cast<C>(width)};
  const LineGrad<C> down{column_mean, column_most, column_at, C(1) / static_cast<C>(height)};
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i * kVec, channels), row = split(pixel.whole, width), image = split(row.whole, height);
    const index_t by_row = row.whole * channels + pixel.rest;
    const index_t by_column = (image.whole * width + row.rest) * channels + pixel.rest;
    Pack<T, kVec> v{};
    if (dout) v = load<kVec>(dout + i * kVec, kVec);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const C value = along(by_row + k, row.rest) + down(by_column + k, image.rest);
      const C grad = dout ? widen(v.at[k]) * row_gates[by_row + k] * column_gates[by_column + k] : C(0);
      v.at[k] = narrow<T>(value + grad);
    }
    store(dx + i * kVec, v, kVec);
  }
}

}  // namespace ff::cuda
