// SPDX-License-Identifier: Apache-2.0
// Gates on channels and pixels in parallel (reference/gate.py has the equations), NHWC: SE, ECA, scSE, SA, CSA. A block
// takes an image: one pass for the channels' means, the pixels' values and the channels' gates, one that multiplies
// and, where asked, pools; backward one for all sums and dx. The passes of a block over its image after the first are
// from the cache. Values that are kept, and parameters, are in the compute type.
#pragma once

#include "cuda/image.cuh"

namespace ff::cuda {

// A convolution of an odd number of taps over an image's channels, zeros beside them.
template <class C>
struct GateTaps {
  const C* weight;
  index_t channels, taps;

  __device__ __forceinline__ C inside(const C* v, index_t c) const { return c >= 0 && c < channels ? v[c] : C(0); }
  __device__ __forceinline__ C along(const C* v, index_t c) const {
    C sum = C(0);
    for (index_t k = 0; k < taps; ++k) sum += weight[k] * inside(v, c + k - taps / 2);
    return sum;
  }
  // The transposed convolution of the logits' gradients.
  __device__ __forceinline__ C back(const C* dlogits, index_t c) const {
    C sum = C(0);
    for (index_t k = 0; k < taps; ++k) sum += weight[k] * inside(dlogits, c - k + taps / 2);
    return sum;
  }
  // Gradient of tap k, in every lane of a warp.
  __device__ __forceinline__ C tap(const C* dlogits, const C* v, index_t k) const {
    C sum = C(0);
    for (index_t c = lane_rank(); c < channels; c += 32) sum += dlogits[c] * inside(v, c + k - taps / 2);
    return warp_sum(sum);
  }
};

// The channel side's parameters: two layers, or, w2 null, `hidden` taps of w1.
template <class C>
struct ChannelSide {
  GateLayers<C> layers;
  int gate_act;

  __device__ __forceinline__ GateTaps<C> taps() const { return {layers.w1, layers.channels, layers.hidden}; }

  // gates and their logits, channels each, from the means; ends with a barrier.
  template <int kThreads>
  __device__ __forceinline__ void gates(const C* means, const Shared<C>& states, C* gates, C* logits) const {
    if (layers.w2) {
      gate_layers<kThreads, C>(layers, means, 0, states, logits);
    } else {
      for (index_t c = thread_rank(); c < layers.channels; c += kThreads) logits[c] = taps().along(means, c);
    }
    for (index_t c = thread_rank(); c < layers.channels; c += kThreads) gates[c] = activate(gate_act, logits[c]);
    sync();
  }

  // Gradients of the hidden units and their activated sums, or of the taps in dh, and of the means, from the logits'.
  template <int kThreads>
  __device__ __forceinline__ void grads(const C* means, const C* dlogits, C* dh, C* sums, C* dmeans) const {
    if (layers.w2) {
      gate_layers_grad<kThreads, C>(layers, means, 0, dlogits, dh, 0, sums, dmeans);
      return;
    }
    for (index_t c = thread_rank(); c < layers.channels; c += kThreads) dmeans[c] = taps().back(dlogits, c);
    for (index_t k = warp_rank(); k < layers.hidden; k += kThreads / 32) {
      const C sum = taps().tap(dlogits, means, k);
      if (lane_rank() == 0) dh[k] = sum;
    }
    sync();
  }
};

// The gate of a pixel: sigmoid(sw·[maximum, mean] + sb) of `own`, its values (a plane each), or of its logit, `linear`.
template <class C>
__device__ __forceinline__ C pixel_gate(const C* own, index_t pixels, const C* sw, const C* sb, bool linear) {
  return logistic(linear ? own[0] : sw[0] * own[0] + sw[1] * own[pixels] + sb[0]);
}

// means [images][channels], and [2][images][channels] gates and their logits, unless means is null; values [images][3]
// [pixels] maximum, mean and the maximum's channel, or, `linear`, [images][1][pixels] sw·x + sb, and the pixel gates
// s [images][pixels], unless values is null.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 2)
    gate_values(const T* __restrict__ x, const compute_t<T>* __restrict__ w1, const compute_t<T>* __restrict__ b1,
                const compute_t<T>* __restrict__ w2, const compute_t<T>* __restrict__ b2,
                const compute_t<T>* __restrict__ sw, const compute_t<T>* __restrict__ sb, compute_t<T>* means,
                compute_t<T>* gates, compute_t<T>* values, compute_t<T>* __restrict__ spatial, index_t images,
                index_t pixels, index_t channels, index_t hidden, index_t act, index_t gate_act, index_t linear) {
  using C = compute_t<T>;
  FF_SHARED(C, states, kThreads);
  const index_t n = block_x(), first = n * channels;
  const T* const image = x + n * pixels * channels;
  if (means) {
    for_channels<1, kThreads, C>(
        pixels, channels, states, {C(0)},
        [&](C(&state)[1], index_t pixel, index_t c) { state[0] += widen(image[pixel * channels + c]); }, AddWords(),
        [&](const C(&state)[1], index_t c) { means[first + c] = state[0] / static_cast<C>(pixels); });
    const ChannelSide<C> side{{w1, b1, w2, b2, channels, hidden, 1, static_cast<int>(act)}, static_cast<int>(gate_act)};
    side.template gates<kThreads>(means + first, states, gates + first, gates + images * channels + first);
  }
  if (!values) return;
  for_pixels<kThreads>(pixels, channels, [&](index_t pixel, int lane, int lanes) {
    First<C> best{C(0), -1};
    C sum = C(0);
    if (pixel < pixels)
      for (index_t c = lane; c < channels; c += lanes) {
        const C value = widen(image[pixel * channels + c]);
        best.take(value, c);
        sum += linear ? value * sw[c] : value;
      }
    sum = pixel_sum(sum, lanes);
    best.among(lanes);
    if (lane > 0 || pixel >= pixels) return;
    C* const own = values + n * pixels * (linear ? 1 : 3) + pixel;
    own[0] = linear ? sum + sb[0] : best.value;
    if (!linear) own[pixels] = sum / static_cast<C>(channels), own[2 * pixels] = static_cast<C>(best.at);
    spatial[n * pixels + pixel] = pixel_gate(own, pixels, sw, sb, linear != 0);
  });
}

// out = x·(channel gate + pixel gate), either null, by packs of kVec channels; with `pool` the maximum of each 2 x 2,
// whose first is taken among equals and whose last NaN among NaN. `count` packs of out.
template <class T, int kVec, int kThreads>
__global__ void __launch_bounds__(kThreads)
    gate_apply(const T* __restrict__ x, const compute_t<T>* __restrict__ gates,
               const compute_t<T>* __restrict__ spatial, T* __restrict__ out, index_t count, index_t height,
               index_t width, index_t channels, index_t pool) {
  using C = compute_t<T>;
  const index_t rows = pool ? height / 2 : height, columns = pool ? width / 2 : width;
  for (index_t i = grid_rank<kThreads>(); i < count; i += grid_size<kThreads>()) {
    const Split at = split(i * kVec, channels), row = split(at.whole, columns), image = split(row.whole, rows);
    C best[kVec];
    for (int place = 0; place < (pool ? 4 : 1); ++place) {
      const index_t pixel =
          pool ? (2 * image.rest + place / 2) * width + 2 * row.rest + place % 2 : image.rest * width + row.rest;
      const index_t from = image.whole * height * width + pixel;
      const C s = spatial ? spatial[from] : C(0);
      const Pack<T, kVec> v = load<kVec>(x + from * channels + at.rest, kVec);
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        const C gate = gates ? gates[image.whole * channels + at.rest + k] + s : s;
        const C value = widen(v.at[k]) * gate;
        if (place == 0 || value > best[k] || value != value) best[k] = value;
      }
    }
    Pack<T, kVec> result;
#pragma unroll
    for (int k = 0; k < kVec; ++k) result.at[k] = narrow<T>(best[k]);
    store(out + i * kVec, result, kVec);
  }
}

// What reaches x·gates of image n: dout, or with `pool` dout where x·gates is its window's maximum, else 0.
template <class T>
struct Gated {
  using C = compute_t<T>;
  const T* dout;  // image n
  const T* x;
  const C* gates;
  const C* spatial;
  index_t height, width, channels;
  bool pool;

  __device__ __forceinline__ C gate(index_t pixel, index_t c) const {
    return (gates ? gates[c] : C(0)) + (spatial ? spatial[pixel] : C(0));
  }
  __device__ __forceinline__ C grad(index_t pixel, index_t c) const {
    if (!pool) return widen(dout[pixel * channels + c]);
    const Split at = split(pixel, width);
    const index_t row = at.whole / 2, column = at.rest / 2;
    if (row >= height / 2 || column >= width / 2) return C(0);
    C best = C(0);
    index_t where = 0;
    for (int place = 0; place < 4; ++place) {
      const index_t other = (2 * row + place / 2) * width + 2 * column + place % 2;
      const C value = widen(x[other * channels + c]) * gate(other, c);
      if (place == 0 || value > best || value != value) best = value, where = other;
    }
    return where == pixel ? widen(dout[(row * (width / 2) + column) * channels + c]) : C(0);
  }
};

// dx, unless null, and by image what the parameters' gradients are sums of. Unless w1 is null: gradients of the
// channels' logits dz [images][channels], of the hidden units before their activation dh, and the activated ones `sums`
// [images][hidden], or, w2 null, of the taps, dh. Unless values is null: of the pixels' logits dl [images][pixels], and
// d_pixel [images][3] sums of dl·maximum, dl·mean (not where `linear`) and dl. Scratch: gates [3][images][channels] for
// gates, logits and the means' gradients, spatial [images][pixels].
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads, 1)
    gate_bwd(const T* __restrict__ dout, const T* __restrict__ x, const compute_t<T>* __restrict__ means,
             const compute_t<T>* __restrict__ values, const compute_t<T>* __restrict__ w1,
             const compute_t<T>* __restrict__ b1, const compute_t<T>* __restrict__ w2,
             const compute_t<T>* __restrict__ b2, const compute_t<T>* __restrict__ sw,
             const compute_t<T>* __restrict__ sb, T* __restrict__ dx, compute_t<T>* dz, compute_t<T>* dh,
             compute_t<T>* sums, compute_t<T>* dl, compute_t<T>* __restrict__ d_pixel, compute_t<T>* gates,
             compute_t<T>* spatial, index_t images, index_t height, index_t width, index_t channels, index_t hidden,
             index_t act, index_t gate_act, index_t linear, index_t pool) {
  using C = compute_t<T>;
  FF_SHARED(C, states, 3 * kThreads);
  const index_t n = block_x(), pixels = height * width, first = n * channels, stride = images * channels;
  const index_t outputs = pool ? (height / 2) * (width / 2) : pixels;
  const C* const own = values + n * pixels * (linear ? 1 : 3);
  C* const s = spatial + n * pixels;
  C* const grads = dl + n * pixels;
  const T* const image = x + n * pixels * channels;
  const Gated<T> gated{dout + n * outputs * channels,
                       image,
                       w1 ? gates + first : nullptr,
                       values ? s : nullptr,
                       height,
                       width,
                       channels,
                       pool != 0};
  const ChannelSide<C> side{{w1, b1, w2, b2, channels, hidden, 1, static_cast<int>(act)}, static_cast<int>(gate_act)};
  if (w1) side.template gates<kThreads>(means + first, states, gates + first, gates + stride + first);
  if (values) {
    for (index_t pixel = thread_rank(); pixel < pixels; pixel += kThreads)
      s[pixel] = pixel_gate(own + pixel, pixels, sw, sb, linear != 0);
    sync();
    for_pixels<kThreads>(pixels, channels, [&](index_t pixel, int lane, int lanes) {
      C sum = C(0);
      if (pixel < pixels)
        for (index_t c = lane; c < channels; c += lanes)
          sum += gated.grad(pixel, c) * widen(image[pixel * channels + c]);
      sum = pixel_sum(sum, lanes);
      if (lane == 0 && pixel < pixels) grads[pixel] = sum * s[pixel] * (C(1) - s[pixel]);
    });
    sync();
    reduce_rows<3, kThreads, C>(
        0, pixels, 0, 1, states, {C(0), C(0), C(0)},
        [&](C(&state)[3], index_t pixel, index_t) {
          if (!linear) state[0] += grads[pixel] * own[pixel], state[1] += grads[pixel] * own[pixels + pixel];
          state[2] += grads[pixel];
        },
        AddWords(),
        [&](const C(&state)[3], index_t) {
#pragma unroll
          for (int i = 0; i < 3; ++i) d_pixel[3 * n + i] = state[i];
        });
    sync();
  }
  if (w1) {
    for_channels<1, kThreads, C>(
        pixels, channels, states, {C(0)},
        [&](C(&state)[1], index_t pixel, index_t c) {
          state[0] += gated.grad(pixel, c) * widen(image[pixel * channels + c]);
        },
        AddWords(),
        [&](const C(&state)[1], index_t c) {
          dz[first + c] = activate_grad(static_cast<int>(gate_act), state[0], gates[stride + first + c]);
        });
    side.template grads<kThreads>(means + first, dz + first, dh + n * hidden, sums + n * hidden,
                                  gates + 2 * stride + first);
  }
  if (!dx) return;
  const C* const dmeans = gates + 2 * stride + first;
  for_pixels<kThreads>(pixels, channels, [&](index_t pixel, int lane, int lanes) {
    if (pixel >= pixels) return;
    for (index_t c = lane; c < channels; c += lanes) {
      C value = gated.grad(pixel, c) * gated.gate(pixel, c);
      if (w1) value += dmeans[c] / static_cast<C>(pixels);
      if (values && linear) value += grads[pixel] * sw[c];
      if (values && !linear) {
        value += grads[pixel] * sw[1] / static_cast<C>(channels);
        if (own[2 * pixels + pixel] == static_cast<C>(c)) value += grads[pixel] * sw[0];
      }
      dx[(n * pixels + pixel) * channels + c] = narrow<T>(value);
    }
  });
}

// partial [images][channels]: sums over an image of dl·x, the gradient of linear pixel gates' weight.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    gate_linear_weight(const T* __restrict__ x, const compute_t<T>* __restrict__ dl, compute_t<T>* __restrict__ partial,
                       index_t pixels, index_t channels) {
  using C = compute_t<T>;
  FF_SHARED(C, states, kThreads);
  const index_t n = block_x();
  for_channels<1, kThreads, C>(
      pixels, channels, states, {C(0)},
      [&](C(&state)[1], index_t pixel, index_t c) {
        state[0] += dl[n * pixels + pixel] * widen(x[(n * pixels + pixel) * channels + c]);
      },
      AddWords(), [&](const C(&state)[1], index_t c) { partial[n * channels + c] = state[0]; });
}

// Gradients of a gate's two layers, summed over rows: w1 [hidden][channels] and b1 of dh [rows][hidden] and the layer's
// inputs [rows][channels]; w2 [channels][hidden] and b2, which counts `times`, of dz [images][channels] and the hidden
// sums [images][hidden]. blockIdx: channels, hidden unit, layer.
template <class C>
__global__ void __launch_bounds__(kColumnThreads)
    gate_layers_weights(const C* __restrict__ dh, const C* __restrict__ inputs, const C* __restrict__ dz,
                        const C* __restrict__ sums, C* __restrict__ d_w1, C* __restrict__ d_b1, C* __restrict__ d_w2,
                        C* __restrict__ d_b2, index_t rows, index_t images, index_t channels, index_t hidden,
                        double times) {
  const index_t unit = block_y();
  const bool first = block_z() == 0;
  const C* const units = first ? dh : sums;
  const C* const values = first ? inputs : dz;
  reduce_columns<2, C>(
      0, first ? rows : images, block_x() * kColumnLanes, channels, {C(0), C(0)},
      [&](C(&state)[2], index_t row, index_t c) {
        const C of_unit = units[row * hidden + unit], value = values[row * channels + c];
        state[0] += of_unit * value;
        state[1] += first ? of_unit : value;
      },
      AddWords(),
      [&](const C(&state)[2], index_t c) {
        (first ? d_w1[unit * channels + c] : d_w2[c * hidden + unit]) = state[0];
        if (first && c == 0) d_b1[unit] = state[1];
        if (!first && unit == 0) d_b2[c] = state[1] * static_cast<C>(times);
      });
}

}  // namespace ff::cuda
