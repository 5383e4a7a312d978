// SPDX-License-Identifier: Apache-2.0
// What gates on channels and pixels are made of: a block takes an image (pixels, channels) and goes over it by pixels
// and by channels, the later times from the cache, and runs the small layers between channel means and channel gates.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/math.cuh"

namespace ff::cuda {

constexpr int kImageThreads = 512;

// visit(pixel, lane, lanes) for every pixel: `lanes` neighbours share one and take its channels in turn. They call it
// together with the other pixels of their warp, for pixels past the last, too, so that it may shuffle.
template <int kThreads, class Visit>
__device__ __forceinline__ void for_pixels(index_t pixels, index_t channels, const Visit& visit) {
  const int lanes = column_lanes(channels), groups = kThreads / lanes;
  for (index_t first = 0; first < pixels; first += groups)
    visit(first + thread_rank() / lanes, thread_rank() % lanes, lanes);
}

// Sum over the lanes of a pixel, in each of them.
template <class C>
__device__ __forceinline__ C pixel_sum(C value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// A value and where it was; takes the larger, the first of equal ones, and the first NaN before all, as torch.max(dim).
template <class C>
struct First {
  C value;
  index_t at;  // -1: nothing yet

  __device__ __forceinline__ void take(C other, index_t place) {
    if (place < 0) return;
    const bool nan = value != value, other_nan = other != other;
    const bool better = other_nan ? !nan || place < at : !nan && (other > value || (other == value && place < at));
    if (at < 0 || better) value = other, at = place;
  }
  // Of all lanes of a pixel, in each of them.
  __device__ __forceinline__ void among(int lanes) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      const C other = shuffle_xor(value, mask);
      take(other, shuffle_xor(at, mask));
    }
  }
};

// Totals over the pixels for every channel, by `add`, `merge` and `finish` as reduce_rows; all have met a barrier
// after.
template <int kWords, int kThreads, class C, class Add, class Merge, class Finish>
__device__ __forceinline__ void for_channels(index_t pixels, index_t channels, const Shared<C>& states,
                                             const C (&zero)[kWords], const Add& add, const Merge& merge,
                                             const Finish& finish) {
  for (index_t first = 0; first < channels; first += column_lanes(channels)) {
    reduce_rows<kWords, kThreads, C>(0, pixels, first, channels, states, zero, add, merge, finish);
    sync();
  }
}

// Two small layers, w2·act(w1·v + b1) + b2, on one vector of an image's channels or on two, whose outputs are added
// (b2 counts twice). w1 (hidden, channels), w2 (channels, hidden). b1 and b2 may be null.
template <class C>
struct GateLayers {
  const C* w1;
  const C* b1;
  const C* w2;
  const C* b2;
  index_t channels, hidden;
  int inputs, act;

  // w1·v + b1 of one unit, in every lane of a warp.
  __device__ __forceinline__ C unit(const C* v, index_t u) const {
    C sum = C(0);
    for (index_t c = lane_rank(); c < channels; c += 32) sum += w1[u * channels + c] * v[c];
    return warp_sum(sum) + (b1 ? b1[u] : C(0));
  }
};

// logits (channels) from v: `inputs` vectors, `stride` apart; `units` has kThreads elements. Ends with a barrier.
template <int kThreads, class C>
__device__ __forceinline__ void gate_layers(const GateLayers<C>& layers, const C* v, index_t stride,
                                            const Shared<C>& units, C* logits) {
  for (index_t c = thread_rank(); c < layers.channels; c += kThreads)
    logits[c] = layers.b2 ? static_cast<C>(layers.inputs) * layers.b2[c] : C(0);
  for (index_t first = 0; first < layers.hidden; first += kThreads) {
    const index_t last = first + kThreads < layers.hidden ? first + kThreads : layers.hidden;
    for (index_t u = first + warp_rank(); u < last; u += kThreads / 32) {
      C sum = C(0);
      for (int i = 0; i < layers.inputs; ++i) sum += activate(layers.act, layers.unit(v + i * stride, u));
      if (lane_rank() == 0) units[u - first] = sum;
    }
    sync();
    for (index_t c = thread_rank(); c < layers.channels; c += kThreads) {
      C sum = logits[c];
      for (index_t u = first; u < last; ++u) sum += layers.w2[c * layers.hidden + u] * units[u - first];
      logits[c] = sum;
    }
    sync();
  }
}

// From the gradients of the logits (channels): those of w1·v + b1, dh (inputs vectors of hidden, h_stride apart), and
// of v, dv (as v); sums (hidden) of the inputs' act(w1·v + b1). Ends with a barrier.
template <int kThreads, class C>
__device__ __forceinline__ void gate_layers_grad(const GateLayers<C>& layers, const C* v, index_t stride,
                                                 const C* dlogits, C* dh, index_t h_stride, C* sums, C* dv) {
  for (index_t u = warp_rank(); u < layers.hidden; u += kThreads / 32) {
    C da = C(0), sum = C(0);
    for (index_t c = lane_rank(); c < layers.channels; c += 32) da += dlogits[c] * layers.w2[c * layers.hidden + u];
    da = warp_sum(da);
    for (int i = 0; i < layers.inputs; ++i) {
      const C z = layers.unit(v + i * stride, u);
      if (lane_rank() == 0) dh[i * h_stride + u] = activate_grad(layers.act, da, z);
      sum += activate(layers.act, z);
    }
    if (lane_rank() == 0) sums[u] = sum;
  }
  sync();
  for (index_t c = thread_rank(); c < layers.channels; c += kThreads)
    for (int i = 0; i < layers.inputs; ++i) {
      C sum = C(0);
      for (index_t u = 0; u < layers.hidden; ++u) sum += dh[i * h_stride + u] * layers.w1[u * layers.channels + c];
      dv[i * stride + c] = sum;
    }
  sync();
}

}  // namespace ff::cuda
