// SPDX-License-Identifier: Apache-2.0
// Dense convolution as im2col-free products, NHWC. Weights and their gradients lie (o, kh, kw, c), in the
// compute type. A 1 x 1 convolution is the same product with one tap.
// S: what the operands of a product are rounded to, T, or tf32 for float.
#pragma once

#include "cuda/gemm.cuh"
#include "cuda/math.cuh"

namespace ff::cuda {

// Sizes of a convolution; the kernels take them one by one.
struct Window {
  index_t height, width, channels, oh, ow, kh, kw, sh, sw, top, left;
};

// x at tap (p, q), channel c, of output pixel m; zero outside.
template <class T>
struct WindowOf {
  using C = compute_t<T>;
  const T* x;
  Window w;

  __device__ __forceinline__ C operator()(index_t m, index_t k) const {
    const Split c = split(k, w.channels), tap = split(c.whole, w.kw), line = split(m, w.ow),
                image = split(line.whole, w.oh);
    const index_t row = image.rest * w.sh + tap.whole - w.top, column = line.rest * w.sw + tap.rest - w.left;
    if (row < 0 || row >= w.height || column < 0 || column >= w.width) return C(0);
    return widen(x[((image.whole * w.height + row) * w.width + column) * w.channels + c.rest]);
  }
};

// dy at the output pixel that reads input pixel m by tap (p, q), channel o; zero where none does.
template <class T>
struct WindowOnto {
  using C = compute_t<T>;
  const T* dy;
  Window w;  // channels: those of dy

  __device__ __forceinline__ C operator()(index_t m, index_t k) const {
    const Split o = split(k, w.channels), tap = split(o.whole, w.kw), line = split(m, w.width);
    const Split image = split(line.whole, w.height);
    const index_t down = image.rest + w.top - tap.whole, right = line.rest + w.left - tap.rest;
    if (down < 0 || right < 0) return C(0);
    const Split row = split(down, w.sh), column = split(right, w.sw);
    if (row.rest || column.rest || row.whole >= w.oh || column.whole >= w.ow) return C(0);
    return widen(dy[((image.whole * w.oh + row.whole) * w.ow + column.whole) * w.channels + o.rest]);
  }
};

// y (rows, o) = windows of x times weight (o, kh·kw·c) + bias, and what `Output` does with it.
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    conv2d_fwd(const T* __restrict__ x, const compute_t<T>* __restrict__ weight, const compute_t<T>* __restrict__ bias,
               const compute_t<T>* __restrict__ a_weight, const compute_t<T>* __restrict__ a_bias,
               const compute_t<T>* __restrict__ a_stats, const compute_t<T>* __restrict__ a_var, double a_eps,
               T* __restrict__ y, compute_t<T>* partial, compute_t<T>* __restrict__ stats, unsigned* tickets,
               double eps, index_t act, index_t rows, index_t outputs, index_t height, index_t width, index_t channels,
               index_t oh, index_t ow, index_t kh, index_t kw, index_t sh, index_t sw, index_t top, index_t left) {
  const WindowOf<T> windows{x, {height, width, channels, oh, ow, kh, kw, sh, sw, top, left}};
  const index_t inner = kh * kw * channels;
  const Output<T> out{y,
                      bias,
                      {a_weight, a_bias, a_stats, a_var, a_eps, outputs, static_cast<int>(act)},
                      {partial, stats, tickets, outputs, eps}};
  matmul_rows<Along::k, Along::k, S>(
      rows, inner, windows, [&](index_t k, index_t n) { return weight[n * inner + k]; }, out);
}

// dx (rows, c) from dy and weight (o, kh·kw·c).
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    conv2d_bwd_input(const T* __restrict__ dy, const compute_t<T>* __restrict__ weight, T* __restrict__ dx,
                     index_t rows, index_t channels, index_t height, index_t width, index_t outputs, index_t oh,
                     index_t ow, index_t kh, index_t kw, index_t sh, index_t sw, index_t top, index_t left) {
  using C = compute_t<T>;
  const WindowOnto<T> windows{dy, {height, width, outputs, oh, ow, kh, kw, sh, sw, top, left}};
  const index_t taps = kh * kw;
  matmul_tile<Along::k, Along::other, S>(
      block_x() * kTile, block_y() * kTile, rows, channels, 0, taps * outputs, windows,
      [&](index_t k, index_t n) {
        const Split output = split(k, outputs);
        return weight[(output.rest * taps + output.whole) * channels + n];
      },
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_part(sums, m, n, rows, channels, dx);
      });
}

// partial [parts][o][kh·kw·c]: the weight gradient over each part of the output pixels.
template <class T, class S>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    conv2d_bwd_weight(const T* __restrict__ x, const T* __restrict__ dy, compute_t<T>* __restrict__ partial,
                      index_t pixels, index_t pixels_per_part, index_t outputs, index_t height, index_t width,
                      index_t channels, index_t oh, index_t ow, index_t kh, index_t kw, index_t sh, index_t sw,
                      index_t top, index_t left) {
  using C = compute_t<T>;
  const WindowOf<T> windows{x, {height, width, channels, oh, ow, kh, kw, sh, sw, top, left}};
  const index_t taps = kh * kw * channels, first = block_z() * pixels_per_part;
  const index_t last = first + pixels_per_part < pixels ? first + pixels_per_part : pixels;
  C* const target = partial + block_z() * taps * outputs;
  matmul_tile<Along::other, Along::other, S>(
      block_x() * kTile, block_y() * kTile, outputs, taps, first, last,
      [&](index_t m, index_t k) { return widen(dy[k * outputs + m]); }, windows,
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
        store_part(sums, m, n, outputs, taps, target);
      });
}

}  // namespace ff::cuda
