// SPDX-License-Identifier: Apache-2.0
// Max pooling over windows, mean and maximum over images, NHWC. A maximum is the first of its window, row by row, or
// the last NaN, as torch has it. Backward gathers: each element of dx asks the windows that hold it whether it was
// their maximum.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/normalise.cuh"

namespace ff::cuda {

// A value and where it was.
template <class C>
struct Best {
  C value;
  index_t at;

  __device__ __forceinline__ void take(C other, index_t place) {
    if (other > value || other != other) value = other, at = place;
  }
};

// Windows that hold row (or column) i: [first, last).
__device__ __forceinline__ index_t first_window(index_t i, index_t before, index_t kernel, index_t stride) {
  const index_t start = i + before - kernel + 1;
  return start <= 0 ? 0 : (start + stride - 1) / stride;
}
__device__ __forceinline__ index_t last_window(index_t i, index_t before, index_t stride, index_t windows) {
  const index_t end = (i + before) / stride + 1;
  return end < windows ? end : windows;
}

// y (n, oh, ow, c) and, unless null, the place p·kw + q of each maximum in its window.
template <class T, class P, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    max_pool2d_fwd(const T* __restrict__ x, T* __restrict__ y, P* __restrict__ places, index_t count, index_t height,
                   index_t width, index_t channels, index_t oh, index_t ow, index_t kh, index_t kw, index_t sh,
                   index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, ow), image = split(line.whole, oh);
    const index_t column = line.rest * sw - left, row = image.rest * sh - top;
    const index_t p0 = row < 0 ? -row : 0, q0 = column < 0 ? -column : 0;
    const index_t p1 = row + kh < height ? kh : height - row, q1 = column + kw < width ? kw : width - column;
    const T* const window = x + ((image.whole * height + row) * width + column) * channels + pixel.rest;
    Best<C> best{widen(window[(p0 * width + q0) * channels]), p0 * kw + q0};
    for (index_t p = p0; p < p1; ++p)
      for (index_t q = q0; q < q1; ++q) best.take(widen(window[(p * width + q) * channels]), p * kw + q);
    y[i] = narrow<T>(best.value);
    if (places) places[i] = static_cast<P>(best.at);
  }
}

// The same of act(norm(x)), which is rounded to T as if it were stored; `best`, x at the maxima.
template <class T, class P, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    norm_pool_fwd(const T* __restrict__ x, const compute_t<T>* __restrict__ weight,
                  const compute_t<T>* __restrict__ bias, const compute_t<T>* __restrict__ stats,
                  const compute_t<T>* __restrict__ var, double eps, T* __restrict__ y, T* __restrict__ best,
                  P* __restrict__ places, index_t act, index_t count, index_t height, index_t width, index_t channels,
                  index_t oh, index_t ow, index_t kh, index_t kw, index_t sh, index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  const NormOnLoad<C> on_load{weight, bias, stats, var, eps, channels, static_cast<int>(act)};
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, ow), image = split(line.whole, oh);
    const ChannelNorm<C> norm = on_load.of(pixel.rest);
    const index_t column = line.rest * sw - left, row = image.rest * sh - top;
    const index_t p0 = row < 0 ? -row : 0, q0 = column < 0 ? -column : 0;
    const index_t p1 = row + kh < height ? kh : height - row, q1 = column + kw < width ? kw : width - column;
    const T* const window = x + ((image.whole * height + row) * width + column) * channels + pixel.rest;
    Best<C> found{C(0), -1};
    for (index_t p = p0; p < p1; ++p)
#pragma unroll 1  // the branches of an activation once
      for (index_t q = q0; q < q1; ++q) {
        const C value = widen(narrow<T>(norm(widen(window[(p * width + q) * channels]))));
        if (found.at < 0) {
          found = {value, p * kw + q};
        } else {
          found.take(value, p * kw + q);
        }
      }
    const Split place = split(found.at, kw);
    y[i] = narrow<T>(found.value);
    best[i] = window[(place.whole * width + place.rest) * channels];
    places[i] = static_cast<P>(found.at);
  }
}

// dx (n, h, w, c) from dy and places (n, oh, ow, c); windows in order, so that sums repeat.
template <class T, class P, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    max_pool2d_bwd(const T* __restrict__ dy, const P* __restrict__ places, T* __restrict__ dx, index_t count,
                   index_t height, index_t width, index_t channels, index_t oh, index_t ow, index_t kh, index_t kw,
                   index_t sh, index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, width), image = split(line.whole, height);
    const index_t column = line.rest, row = image.rest;
    C sum = C(0);
    for (index_t r = first_window(row, top, kh, sh); r < last_window(row, top, sh, oh); ++r)
      for (index_t c = first_window(column, left, kw, sw); c < last_window(column, left, sw, ow); ++c) {
        const index_t window = ((image.whole * oh + r) * ow + c) * channels + pixel.rest;
        const index_t place = (row + top - r * sh) * kw + column + left - c * sw;
        if (static_cast<index_t>(places[window]) == place) sum += widen(dy[window]);
      }
    dx[i] = narrow<T>(sum);
  }
}

// The gradient of `norm_pool_fwd`: of the pooling, and from it, as norm/cuda.cuh has it, of the norm, whose sums, null
// without batch statistics, were made at the maxima.
template <class T, class P, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    norm_pool_bwd(const T* __restrict__ dy, const P* __restrict__ places, const T* __restrict__ x,
                  const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ bias,
                  const compute_t<T>* __restrict__ stats, const compute_t<T>* __restrict__ d_bias,
                  const compute_t<T>* __restrict__ d_weight, T* __restrict__ dx, index_t act, index_t count,
                  index_t height, index_t width, index_t channels, index_t oh, index_t ow, index_t kh, index_t kw,
                  index_t sh, index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  const C share = C(1) / static_cast<C>(split(count, channels).whole);
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i, channels), line = split(pixel.whole, width), image = split(line.whole, height);
    const index_t column = line.rest, row = image.rest, channel = pixel.rest;
    C sum = C(0);
    for (index_t r = first_window(row, top, kh, sh); r < last_window(row, top, sh, oh); ++r)
      for (index_t c = first_window(column, left, kw, sw); c < last_window(column, left, sw, ow); ++c) {
        const index_t window = ((image.whole * oh + r) * ow + c) * channels + channel;
        const index_t place = (row + top - r * sh) * kw + column + left - c * sw;
        if (static_cast<index_t>(places[window]) == place) sum += widen(dy[window]);
      }
    const C invstd = stats[channels + channel], xhat = (widen(x[i]) - stats[channel]) * invstd;
    C grad = activate_grad(static_cast<int>(act), sum, xhat * weight[channel] + bias[channel]);
    if (d_bias) grad -= (d_bias[channel] + xhat * d_weight[channel]) * share;
    dx[i] = narrow<T>(grad * invstd * weight[channel]);
  }
}

// mean (n, c), unless null; maximum (n, c) and its pixel, unless null. One block an image and 32 channels.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    global_pool_fwd(const T* __restrict__ x, T* __restrict__ mean, T* __restrict__ most, int* __restrict__ places,
                    index_t pixels, index_t channels) {
  using C = compute_t<T>;
  const index_t first = block_x() * pixels;
  reduce_columns<4, C>(
      first, first + pixels, block_y() * kColumnLanes, channels, {C(0), C(0), C(-1), C(0)},
      [&](C(&state)[4], index_t row, index_t channel) {
        Pooled<C>::add(state, widen(x[row * channels + channel]), row - first);
      },
      Pooled<C>(),
      [&](const C(&state)[4], index_t channel) {
        const index_t at = block_x() * channels + channel;
        if (mean) mean[at] = narrow<T>(state[0] / static_cast<C>(pixels));
        if (!most) return;
        most[at] = narrow<T>(state[1]);
        places[at] = static_cast<int>(Pooled<C>::row(state));
      });
}

// dx = dmean / pixels, plus dmost where the maximum was; either may be null.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    global_pool_bwd(const T* __restrict__ dmean, const T* __restrict__ dmost, const int* __restrict__ places,
                    T* __restrict__ dx, index_t count, index_t pixels, index_t channels) {
  using C = compute_t<T>;
  const C share = C(1) / static_cast<C>(pixels);
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split all = split(i, channels), pixel = split(all.whole, pixels);
    const index_t at = pixel.whole * channels + all.rest;
    C value = dmean ? widen(dmean[at]) * share : C(0);
    if (dmost && places[at] == pixel.rest) value += widen(dmost[at]);
    dx[i] = narrow<T>(value);
  }
}

}  // namespace ff::cuda
