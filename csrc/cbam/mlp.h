// SPDX-License-Identifier: Apache-2.0
// The channel gate's MLP on one image, and its gradients; vectorised over channels, w2 as [hidden][stride].
#pragma once
#include "pool/best.h"
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
  // b2_in may be null: backward does not read it.
  void fill(const T* w1_in, const T* b1_in, const T* w2_in, const T* b2_in) {
    for (idx j = 0; j < hidden; ++j) {
      copy_padded<T>(w1 + j * stride, w1_in + j * channels, channels);
      for (idx c = 0; c < stride; ++c) w2[j * stride + c] = c < channels ? w2_in[c * hidden + j] : T(0);
      b1[j] = b1_in[j];
    }
    copy_padded<T>(b2, b2_in, channels);
  }
};

// out[j] = rows[j]·v (+ add[j]) for `count` rows of `stride` elements; a vector of rows at a time.
template <class T>
FF_INLINE void dots(const T* rows, idx count, idx stride, const T* v, const T* add, T* out) {
  constexpr idx L = lanes<T>;
  for (idx first = 0; first < count; first += L) {
    const idx n = min_idx(L, count - first);
    vec<T> sums[L] = {};
    for (idx j = 0; j < n; ++j) {
      const T* row = rows + (first + j) * stride;
      vec<T> sum = {};
      for (idx c = 0; c < stride; c += L) sum = fma(load(row + c), load(v + c), sum);
      sums[j] = sum;
    }
    const vec<T> total = reduce_lanes<T>(sums);
    store_n<T>(out + first, add ? total + load_n<T>(add + first, n) : total, n);
  }
}

// NaN stays, as in torch.
template <class T>
FF_INLINE T relu(T v) {
  return v < 0 ? T(0) : v;
}

// hidden [2][mlp.hidden] = w1·v + b1 for v = avg and max, which are padded to `stride`.
template <class T>
FF_NOINLINE void mlp_hidden(const Mlp<T>& mlp, const T* avg, const T* max, T* hidden) {
  dots<T>(mlp.w1, mlp.hidden, mlp.stride, avg, mlp.b1, hidden);
  dots<T>(mlp.w1, mlp.hidden, mlp.stride, max, mlp.b1, hidden + mlp.hidden);
}

// gate = sigmoid(w2·(relu(hidden[0]) + relu(hidden[1])) + 2·b2), padded to `stride`.
template <class T>
FF_NOINLINE void mlp_gate(const Mlp<T>& mlp, const T* hidden, T* gate) {
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

// From dgate to davg and dmax, adding to `grads` unless null. All vectors are padded to `stride`; dgate becomes the
// gradient before the sigmoid, dhidden [mlp.hidden] is scratch.
template <class T>
FF_NOINLINE void mlp_backward(const Mlp<T>& mlp, const T* avg, const T* max, const T* gate, const T* hidden, T* dgate,
                              T* dhidden, T* davg, T* dmax, const MlpGrads<T>* grads) {
  for (idx c = 0; c < mlp.stride; c += lanes<T>) {
    const vec<T> g = load(gate + c), dz = load(dgate + c) * g * (splat<T>(1) - g);
    store(dgate + c, dz);
    store(davg + c, vec<T>{}), store(dmax + c, vec<T>{});
    if (grads) store(grads->b2 + c, load(grads->b2 + c) + dz + dz);
  }
  dots<T>(mlp.w2, mlp.hidden, mlp.stride, dgate, nullptr, dhidden);
  for (idx j = 0; j < mlp.hidden; ++j) {
    const T a = hidden[j], m = hidden[mlp.hidden + j];
    const T da = a <= 0 ? T(0) : dhidden[j], dm = m <= 0 ? T(0) : dhidden[j];
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
