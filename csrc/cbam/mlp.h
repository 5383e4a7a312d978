// SPDX-License-Identifier: Apache-2.0
// The channel gate's MLP on one image, and its gradients; vectorised over channels, w2 as [hidden][stride].
#pragma once
#include "cbam/lanes.h"
#include "simd/arena.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

// Weights; rows of channels are `stride` apart and padded by zeros.
template <class T>
struct Mlp {
  idx channels, hidden, stride;
  T *w1, *w2, *b1, *b2;  // [hidden][stride] [hidden][stride] [hidden] [stride]

  void take(Arena& a, idx channels_in, idx hidden_in) {
    channels = channels_in, hidden = hidden_in, stride = round_up_lanes<T>(channels_in);
    w1 = a.take<T>(hidden * stride), w2 = a.take<T>(hidden * stride), b1 = a.take<T>(hidden), b2 = a.take<T>(stride);
  }
  void fill(const T* w1_in, const T* b1_in, const T* w2_in, const T* b2_in) {
    for (idx j = 0; j < hidden; ++j) {
      copy_padded<T>(w1 + j * stride, w1_in + j * channels, channels);
      for (idx c = 0; c < stride; ++c) w2[j * stride + c] = c < channels ? w2_in[c * hidden + j] : T(0);
      b1[j] = b1_in[j];
    }
    copy_padded<T>(b2, b2_in, channels);
  }
};

template <class T>
FF_INLINE T dot(const T* a, const T* b, idx stride) {
  vec<T> sum = {};
  for (idx c = 0; c < stride; c += lanes<T>) sum = fma(load(a + c), load(b + c), sum);
  return sum_of_lanes<T>(sum);
}

// NaN stays, as in torch.
template <class T>
FF_INLINE T relu(T v) {
  return v < 0 ? T(0) : v;
}

// gate = sigmoid(mlp(avg) + mlp(max)); the three are padded to `stride`. hidden [2][mlp.hidden]: before the ReLU.
template <class T>
FF_NOINLINE void mlp_gate(const Mlp<T>& mlp, const T* avg, const T* max, T* hidden, T* gate) {
  for (idx j = 0; j < mlp.hidden; ++j) {
    hidden[j] = dot<T>(mlp.w1 + j * mlp.stride, avg, mlp.stride) + mlp.b1[j];
    hidden[mlp.hidden + j] = dot<T>(mlp.w1 + j * mlp.stride, max, mlp.stride) + mlp.b1[j];
  }
  for (idx c = 0; c < mlp.stride; c += lanes<T>) {
    vec<T> z = load(mlp.b2 + c) + load(mlp.b2 + c);
    for (idx j = 0; j < mlp.hidden; ++j)
      z = fma(load(mlp.w2 + j * mlp.stride + c), splat<T>(relu(hidden[j]) + relu(hidden[mlp.hidden + j])), z);
    store(gate + c, logistic<T>(z));
  }
}

// Sums over images of the gradients of the weights, laid out as those.
template <class T>
struct MlpGrads {
  T *w1, *w2, *b1, *b2;

  static idx size(idx stride, idx hidden) { return 2 * hidden * stride + round_up_lanes<T>(hidden) + stride; }
  MlpGrads(T* p, idx stride, idx hidden)
      : w1(p), w2(p + hidden * stride), b1(p + (2 * hidden + 1) * stride), b2(p + 2 * hidden * stride) {}
};

// From dgate to davg and dmax (zeroed first), adding to `grads` unless null. All vectors are padded to `stride`;
// dgate becomes the gradient before the sigmoid.
template <class T>
FF_NOINLINE void mlp_backward(const Mlp<T>& mlp, const T* avg, const T* max, const T* gate, const T* hidden, T* dgate,
                              T* davg, T* dmax, const MlpGrads<T>* grads) {
  for (idx c = 0; c < mlp.stride; c += lanes<T>) {
    const vec<T> g = load(gate + c), dz = load(dgate + c) * g * (splat<T>(1) - g);
    store(dgate + c, dz);
    store(davg + c, vec<T>{}), store(dmax + c, vec<T>{});
    if (grads) store(grads->b2 + c, load(grads->b2 + c) + dz + dz);
  }
  for (idx j = 0; j < mlp.hidden; ++j) {
    const T a = hidden[j], m = hidden[mlp.hidden + j];
    const T dh = dot<T>(dgate, mlp.w2 + j * mlp.stride, mlp.stride), da = a <= 0 ? T(0) : dh, dm = m <= 0 ? T(0) : dh;
    const vec<T> da_v = splat<T>(da), dm_v = splat<T>(dm), h_v = splat<T>(relu(a) + relu(m));
    for (idx c = 0; c < mlp.stride; c += lanes<T>) {
      const idx at = j * mlp.stride + c;
      const vec<T> w = load(mlp.w1 + at);
      store(davg + c, fma(w, da_v, load(davg + c)));
      store(dmax + c, fma(w, dm_v, load(dmax + c)));
      if (!grads) continue;
      store(grads->w1 + at, fma(load(avg + c), da_v, fma(load(max + c), dm_v, load(grads->w1 + at))));
      store(grads->w2 + at, fma(load(dgate + c), h_v, load(grads->w2 + at)));
    }
    if (grads) grads->b1[j] += da + dm;
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
