// SPDX-License-Identifier: Apache-2.0
// CBAM (reference/cbam.py has the equations), NHWC. A block takes an image: it pools it, makes the channel gate g, and
// pools x·g over the channels, from memory once and then from the cache; a convolution over those planes, the norm's
// statistics, and a second pass that multiplies. Backward likewise: one pass for the pixels' sums of dout·x·g, one for
// the channels' sums and dx. What is kept, and parameters, are in the compute type.
#pragma once

#include "cuda/image.cuh"

namespace ff::cuda {

// Of each image: pooled [3][images][channels] mean, maximum, g, and places of the maxima, unless w1 is null; of x·g, or
// x then, planes [2][images][pixels] maximum and mean over channels and the maximum's channel, unless planes is null.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    cbam_gates(const T* __restrict__ x, const compute_t<T>* __restrict__ w1, const compute_t<T>* __restrict__ b1,
               const compute_t<T>* __restrict__ w2, const compute_t<T>* __restrict__ b2, compute_t<T>* pooled,
               int* __restrict__ places, compute_t<T>* __restrict__ planes, int* __restrict__ at, index_t images,
               index_t pixels, index_t channels, index_t hidden) {
  using C = compute_t<T>;
  FF_SHARED(C, states, 4 * kThreads);
  const index_t n = block_x(), stride = images * channels;
  const T* const image = x + n * pixels * channels;
  C* const mine = pooled + n * channels;
  if (w1) {
    for_channels<4, kThreads, C>(
        pixels, channels, states, {C(0), C(0), C(-1), C(0)},
        [&](C(&state)[4], index_t pixel, index_t c) {
          Pooled<C>::add(state, widen(image[pixel * channels + c]), pixel);
        },
        Pooled<C>(),
        [&](const C(&state)[4], index_t c) {
          mine[c] = state[0] / static_cast<C>(pixels);
          mine[stride + c] = state[1];
          places[n * channels + c] = static_cast<int>(Pooled<C>::row(state));
        });
    const GateLayers<C> layers{w1, b1, w2, b2, channels, hidden, 2, static_cast<int>(Act::relu)};
    gate_layers<kThreads, C>(layers, mine, stride, states, mine + 2 * stride);
    for (index_t c = thread_rank(); c < channels; c += kThreads) mine[2 * stride + c] = logistic(mine[2 * stride + c]);
    sync();
  }
  if (!planes) return;
  for_pixels<kThreads>(pixels, channels, [&](index_t pixel, int lane, int lanes) {
    First<C> best{C(0), -1};
    C sum = C(0);
    if (pixel < pixels)
      for (index_t c = lane; c < channels; c += lanes) {
        C value = widen(image[pixel * channels + c]);
        if (w1) value *= mine[2 * stride + c];
        best.take(value, c);
        sum += value;
      }
    best.among(lanes);
    sum = pixel_sum(sum, lanes);
    if (lane > 0 || pixel >= pixels) return;
    planes[n * pixels + pixel] = best.value;
    planes[(images + n) * pixels + pixel] = sum / static_cast<C>(channels);
    at[n * pixels + pixel] = static_cast<int>(best.at);
  });
}

// Outputs next to each other that a thread of the planes' convolution makes: it reads what they share once.
constexpr int kRun = 4;

// y (images, height, width) from in_planes planes of the same size, plane_stride apart, "same" padding of an odd size:
// kFlip: the transposed convolution, out_planes planes from one. kSize: the window's side; 0: `size`.
template <class C, int kSize, bool kFlip, int kThreads>
__global__ void __launch_bounds__(kThreads)
    cbam_conv(const C* __restrict__ x, const C* __restrict__ weight, C* __restrict__ y, index_t images, index_t height,
              index_t width, index_t size) {
  const index_t side = kSize ? kSize : size, runs = (width + kRun - 1) / kRun, plane = images * height * width;
  const index_t count = images * height * runs * (kFlip ? 2 : 1);
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const index_t column = i % runs * kRun, row = i / runs % height, image = i / (runs * height) % images;
    const index_t target = kFlip ? i / (runs * height * images) : 0;
    C sums[kRun] = {};
    for (int p = 0; p < (kFlip ? 1 : 2); ++p) {
      const C* const source = x + p * plane + image * height * width;
      const C* const taps = weight + (kFlip ? target : p) * side * side;
      for (index_t dy = 0; dy < side; ++dy) {
        const index_t from = row + dy - side / 2;
        if (from < 0 || from >= height) continue;
        const C* const line = taps + (kFlip ? side - 1 - dy : dy) * side;
#pragma unroll
        for (index_t dx = 0; dx < side + kRun - 1; ++dx) {
          const index_t at = column + dx - side / 2;
          const C value = at >= 0 && at < width ? source[from * width + at] : C(0);
#pragma unroll
          for (int j = 0; j < kRun; ++j) {
            const index_t q = dx - j;
            if (q >= 0 && q < side) sums[j] += value * line[kFlip ? side - 1 - q : q];
          }
        }
      }
    }
    C* const out = y + target * plane + (image * height + row) * width + column;
#pragma unroll
    for (int j = 0; j < kRun; ++j)
      if (column + j < width) out[j] = sums[j];
  }
}

// partial [images][2][size][size]: sums over an image of plane(pixel + tap) · dy(pixel), a warp a tap and turn.
template <class C, int kThreads>
__global__ void __launch_bounds__(kThreads)
    cbam_conv_weight(const C* __restrict__ planes, const C* __restrict__ dy, C* __restrict__ partial, index_t images,
                     index_t height, index_t width, index_t size) {
  const index_t image = block_x(), pixels = height * width, taps = size * size;
  for (index_t tap = warp_rank(); tap < 2 * taps; tap += kThreads / 32) {
    const C* const plane = planes + (tap / taps * images + image) * pixels;
    const index_t down = tap % taps / size - size / 2, right = tap % size - size / 2;
    C sum = C(0);
    for (index_t row = 0; row < height; ++row) {
      if (row + down < 0 || row + down >= height) continue;
      for (index_t column = lane_rank(); column < width; column += 32)
        if (column + right >= 0 && column + right < width)
          sum += plane[(row + down) * width + column + right] * dy[image * pixels + row * width + column];
    }
    sum = warp_sum(sum);
    if (lane_rank() == 0) partial[image * 2 * taps + tap] = sum;
  }
}

// out = x·g·s, by packs of kVec channels: gates g (images, channels), s (images, pixels), either may be null.
template <class T, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads) cbam_apply(const T* __restrict__ x, const compute_t<T>* __restrict__ gates,
                                                       const compute_t<T>* __restrict__ spatial, T* __restrict__ out,
                                                       index_t count, index_t pixels, index_t channels) {
  using C = compute_t<T>;
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split pixel = split(i * kVec, channels);
    const C s = spatial ? spatial[pixel.whole] : C(1);
    const C* const g = gates + split(pixel.whole, pixels).whole * channels + pixel.rest;
    Pack<T, kVec> v = load<kVec>(x + i * kVec, kVec);
#pragma unroll
    for (int k = 0; k < kVec; ++k) v.at[k] = narrow<T>(gates ? widen(v.at[k]) * g[k] * s : widen(v.at[k]) * s);
    store(out + i * kVec, v, kVec);
  }
}

// dot (images, pixels): sum over channels of dout·x·g, g null: 1.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    pixel_dots(const T* __restrict__ dout, const T* __restrict__ x, const compute_t<T>* __restrict__ gates,
               compute_t<T>* __restrict__ dots, index_t pixels, index_t channels) {
  using C = compute_t<T>;
  const index_t n = block_x();
  const C* const g = gates + n * channels;
  for_pixels<kThreads>(pixels, channels, [&](index_t pixel, int lane, int lanes) {
    const index_t first = (n * pixels + pixel) * channels;
    C sum = C(0);
    if (pixel < pixels)
#pragma unroll 2
      for (index_t c = lane; c < channels; c += lanes) {
        const C product = widen(dout[first + c]) * widen(x[first + c]);
        sum += gates ? product * g[c] : product;
      }
    sum = pixel_sum(sum, lanes);
    if (lane == 0 && pixel < pixels) dots[n * pixels + pixel] = sum;
  });
}

// dx, and unless w1 is null the channel gate's gradients: of the logits dz [images][channels], of the hidden units
// before their activation dh [2][images][hidden], and sums [images][hidden] of the activated ones. The gradient of x·g
// is dout·s plus that of the planes, dplanes [2][images][pixels]; without s dout alone. `dpooled` [2][images][channels]
// is scratch.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 1)
    cbam_bwd(const T* __restrict__ dout, const T* __restrict__ x, const compute_t<T>* __restrict__ pooled,
             const int* __restrict__ places, const compute_t<T>* __restrict__ w1, const compute_t<T>* __restrict__ b1,
             const compute_t<T>* __restrict__ w2, const compute_t<T>* __restrict__ spatial, const int* __restrict__ at,
             const compute_t<T>* __restrict__ dplanes, T* __restrict__ dx, compute_t<T>* dz, compute_t<T>* dh,
             compute_t<T>* __restrict__ sums, compute_t<T>* dpooled, index_t images, index_t pixels, index_t channels,
             index_t hidden) {
  using C = compute_t<T>;
  FF_SHARED(C, states, kThreads);
  const index_t n = block_x(), stride = images * channels, first = n * pixels;
  const C* const gates = pooled + 2 * stride + n * channels;
  const C share = C(1) / static_cast<C>(channels);
  const auto du = [&](index_t pixel, index_t c) {
    const C grad = widen(dout[(first + pixel) * channels + c]);
    if (!spatial) return grad;
    const C value = grad * spatial[first + pixel] + dplanes[images * pixels + first + pixel] * share;
    return at[first + pixel] == c ? value + dplanes[first + pixel] : value;
  };
  if (w1) {
    for_channels<1, kThreads, C>(
        pixels, channels, states, {C(0)},
        [&](C(&state)[1], index_t pixel, index_t c) {
          state[0] += du(pixel, c) * widen(x[(first + pixel) * channels + c]);
        },
        AddWords(),
        [&](const C(&state)[1], index_t c) { dz[n * channels + c] = state[0] * gates[c] * (C(1) - gates[c]); });
    const GateLayers<C> layers{w1, b1, w2, nullptr, channels, hidden, 2, static_cast<int>(Act::relu)};
    gate_layers_grad<kThreads, C>(layers, pooled + n * channels, stride, dz + n * channels, dh + n * hidden,
                                  images * hidden, sums + n * hidden, dpooled + n * channels);
  }
  if (!dx) return;
  const C* const dmean = dpooled + n * channels;
  for_pixels<kThreads>(pixels, channels, [&](index_t pixel, int lane, int lanes) {
    if (pixel >= pixels) return;
    for (index_t c = lane; c < channels; c += lanes) {
      C value = du(pixel, c);
      if (w1) {
        value = value * gates[c] + dmean[c] / static_cast<C>(pixels);
        if (places[n * channels + c] == pixel) value += dmean[stride + c];
      }
      dx[(first + pixel) * channels + c] = narrow<T>(value);
    }
  });
}

}  // namespace ff::cuda
