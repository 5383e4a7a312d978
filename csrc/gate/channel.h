// SPDX-License-Identifier: Apache-2.0
// The channel gate of one image, from its means: two small products or a convolution over the channels, and the way
// back.
#pragma once
#include "simd/lanes.h"
#include "gate/op.h"
#include "norm/linked.h"
#include "primitives/local.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
FF_INLINE void act_vector(T* dst, const T* src, idx n, Act act) {
  affine_act_rows<T>(dst, n, src, n, 1, n, nullptr, nullptr, act);
}

// d = d · act'(at).
template <class T>
FF_INLINE void act_grad_vector(T* d, const T* at, idx n, Act act) {
  act_grad_rows<T>(d, n, d, n, at, n, 1, n, {nullptr, nullptr, nullptr, act}, nullptr, nullptr);
}

// out[r] = bias[r] + w[r] · v for w [rows][n].
template <class T>
FF_NOINLINE void matrix_vector(T* out, const T* w, const T* v, const T* bias, idx rows, idx n) {
  constexpr idx L = lanes<T>;
  T partial[L * L] = {};
  for (idx first = 0; first < rows; first += L) {
    const idx count = min_idx(L, rows - first);
    for (idx r = 0; r < count; ++r) {
      vec<T> sum = {};
      for_lanes<T>(n,
                   [&](idx i, idx k) { sum = fma(load_n<T>(w + (first + r) * n + i, k), load_n<T>(v + i, k), sum); });
      store(partial + r * L, sum);
    }
    store_n<T>(out + first, reduce_lanes_of<T>(partial, Add{}) + load_n<T>(bias + first, count), count);
  }
}

// out = vᵀ · w for w [rows][n].
template <class T>
FF_NOINLINE void vector_matrix(T* out, const T* v, const T* w, idx rows, idx n) {
  for_lanes<T>(n, [&](idx i, idx k) {
    vec<T> sum = {};
    for (idx r = 0; r < rows; ++r) sum = fma(splat<T>(v[r]), load_n<T>(w + r * n + i, k), sum);
    store_n<T>(out + i, sum, k);
  });
}

// out[c] = sum_k w[k] · v[c + (k - taps/2)·step], step 1 or -1, zeros beside v; `padded` has room for c + taps + a
// vector.
template <class T>
FF_NOINLINE void channel_conv(T* out, const T* v, const T* w, idx channels, idx taps, idx step, T* padded) {
  const idx half = taps / 2;
  fill_zero(padded, channels + 2 * half);
  for (idx c = 0; c < channels; ++c) padded[half + c] = v[c];
  for_lanes<T>(channels, [&](idx c, idx n) {
    vec<T> sum = {};
    for (idx k = 0; k < taps; ++k)
      sum = fma(splat<T>(w[k]), load_n<T>(padded + c + (step > 0 ? k : taps - 1 - k), n), sum);
    store_n<T>(out + c, sum, n);
  });
}

// An image's values between means and gates; `hidden` before and `active` after the activation.
template <class T>
struct ChannelValues {
  T *logits, *hidden, *active, *padded;

  void take(Arena& a, const GateParams& p) {
    logits = a.take<T>(p.c), hidden = a.take<T>(p.hidden), active = a.take<T>(p.hidden);
    padded = a.take<T>(p.c + p.hidden);
  }
};

template <class T>
FF_INLINE void channel_logits(const GateParams& p, const T* means, const ChannelValues<T>& v) {
  const T *w1 = static_cast<const T*>(p.w1), *w2 = static_cast<const T*>(p.w2);
  if (!w2) {
    channel_conv<T>(v.logits, means, w1, p.c, p.hidden, 1, v.padded);
    return;
  }
  matrix_vector<T>(v.hidden, w1, means, static_cast<const T*>(p.b1), p.hidden, p.c);
  act_vector<T>(v.active, v.hidden, p.hidden, p.act);
  matrix_vector<T>(v.logits, w2, v.active, static_cast<const T*>(p.b2), p.c, p.hidden);
}

// d_logits [c], the gates' gradients on entry -> gradients of the logits there, of the hidden units in d_hidden, of the
// means in d_means.
template <class T>
FF_INLINE void channel_backward(const GateParams& p, const ChannelValues<T>& v, T* d_logits, T* d_hidden, T* d_means) {
  act_grad_vector<T>(d_logits, v.logits, p.c, p.gate_act);
  const T *w1 = static_cast<const T*>(p.w1), *w2 = static_cast<const T*>(p.w2);
  if (!w2) {
    channel_conv<T>(d_means, d_logits, w1, p.c, p.hidden, -1, v.padded);
    return;
  }
  vector_matrix<T>(d_hidden, d_logits, w2, p.c, p.hidden);
  act_grad_vector<T>(d_hidden, v.hidden, p.hidden, p.act);
  vector_matrix<T>(d_means, d_hidden, w1, p.hidden, p.c);
}

// d_w [rows][n] = aᵀ · b and d_bias = column sums of a, over images: a [images][lda], b [images][ldb], ldb in whole
// vectors.
template <class T>
FF_INLINE void outer_sums(T* d_w, T* d_bias, const T* a, idx lda, const T* b, idx ldb, idx images, idx rows, idx n) {
  gemm<T, true>({.a = a, .lda = lda, .b = b, .ldb = ldb, .c = d_w, .ldc = n, .rows = rows, .cols = n, .depth = images});
  for (idx r = 0; r < rows; ++r) {
    T sum = 0;
    for (idx image = 0; image < images; ++image) sum += a[image * lda + r];
    d_bias[r] = sum;
  }
}

// d_w[k] = sum over images and channels of d_logits[c] · means[c + k - taps/2].
template <class T>
FF_INLINE void conv_gradient(const GateParams& p, const T* d_logits, idx stride, const T* means) {
  for (idx k = 0; k < p.hidden; ++k) {
    const idx shift = k - p.hidden / 2, from = max_idx(0, -shift), to = min_idx(p.c, p.c - shift);
    double sum = 0;
    for (idx image = 0; image < p.n; ++image)
      for (idx c = from; c < to; ++c)
        sum += static_cast<double>(d_logits[image * stride + c]) * static_cast<double>(means[image * p.c + c + shift]);
    static_cast<T*>(p.d_w1)[k] = static_cast<T>(sum);
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
