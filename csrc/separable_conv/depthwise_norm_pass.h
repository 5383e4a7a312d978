// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution with normalisation and activation: out = act(norm(depthwise(x))).
//   inference  the norm is folded into the weights: one pass
//   training   y and its moments band by band, then out in a second pass
//   backward   sums of the norm; then dout -> dx with the weights' gradient, the norm's backward applied on the way in
#pragma once
#include "norm/passes.h"
#include "separable_conv/depthwise_pass.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
FF_INLINE void depthwise_norm_inference(const DepthwiseParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw, row_size = s.ow * s.c;
  T *w = nullptr, *scale = nullptr, *shift = nullptr;
  Arena a(Scratch::shared);
  w = a.take<T>(taps * stride);
  scale = a.take<T>(stride), shift = a.take<T>(stride);
  fold<T>(p.norm, p.bias, s.c, scale, shift);
  pack_depthwise<T>(w, static_cast<const T*>(p.weight), scale, s.c, taps);
  T lo, hi;
  const bool clamped = clamp_bounds(p.act, &lo, &hi);
  const Bands bands = forward_bands<T>(s);
  const ForwardRow<T> row = row_kernels<T>(s).forward;
  for_tasks(bands.count, p.threads, [&](idx band) {
    const T* image = static_cast<const T*>(p.x) + bands.image(band) * s.h * s.w * s.c;
    const idx first = bands.first(band), rows = bands.end(band) - first;
    T* out = static_cast<T*>(p.out) + (bands.image(band) * s.oh + first) * row_size;
    for (idx r = 0; r < rows; ++r) row(s, image, first + r, w, shift, out + r * row_size, s.c, lo, hi);
    if (!clamped) affine_act_rows<T>(out, s.c, out, s.c, rows * s.ow, s.c, nullptr, nullptr, p.act);
  });
}

template <class T>
FF_INLINE void depthwise_norm_training(const DepthwiseParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw;
  const Bands bands = forward_bands<T>(s, p.linked_input.weight);
  const Wide v = widened<T>(s.n * s.oh * s.ow, s.c);
  T *w = nullptr, *bias = nullptr, *mean = nullptr, *m2 = nullptr;
  NormVectors<T> n;
  LinkedInput<T> linked_input;
  Arena a(Scratch::shared);
  w = a.take<T>(taps * stride), bias = a.take<T>(stride);
  if (p.batch_stats) mean = a.take<T>(bands.count * stride), m2 = a.take<T>(bands.count * stride);
  n.take(a, p.norm, s.c), linked_input.take(a, p.linked_input, s.c);
  linked_input.fill(p.linked_input, s.c);
  pack_depthwise<T>(w, static_cast<const T*>(p.weight), nullptr, s.c, taps);
  copy_padded(bias, static_cast<const T*>(p.bias), s.c);
  constant_stats<T>(p.norm, s.c, p.batch_stats);
  T* y = static_cast<T*>(p.y);
  depthwise_forward_pass<T>({s, static_cast<const T*>(p.x), w, bias, y, mean, m2, p.threads, linked_input});
  if (p.batch_stats)
    merge_moments(
        mean, m2, bands.count, stride, s.c, p.norm.eps, [&](idx b) { return (bands.end(b) - bands.first(b)) * s.ow; },
        static_cast<T*>(p.norm.stats));
  n.fill(p.norm, s.c, v.times);
  affine_act_pass<T>(static_cast<T*>(p.out), y, v, n, p.act, p.threads);
}

template <class T>
FF_INLINE void depthwise_norm_backward(const DepthwiseParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw;
  const Wide v = widened<T>(s.n * s.oh * s.ow, s.c);
  const T *dout = static_cast<const T*>(p.dout), *y = static_cast<const T*>(p.y);
  LinkedInput<T> linked_input;
  Arena a(Scratch::shared);
  NormBackward<T> norm;
  norm.take(a, p.norm, s.c, v), linked_input.take(a, p.linked_input, s.c, kDepthwiseChunks);
  T* w = a.take<T>(taps * stride);
  DepthwiseBackward<T> pass{};
  pass.s = s, pass.threads = p.threads;
  pass.dx = static_cast<T*>(p.dx), pass.dw = static_cast<T*>(p.d_weight), pass.db = static_cast<T*>(p.d_bias);
  norm.run(p.norm, s.c, v, dout, y, p.act, p.batch_stats, p.threads);
  pack_depthwise<T>(w, static_cast<const T*>(p.weight), nullptr, s.c, taps);
  pass.x = static_cast<const T*>(p.x), pass.w = w, pass.dy = dout, pass.y = y;
  pass.norm = norm.form, pass.after = norm.norm_act(p.act);
  linked_input.fill(p.linked_input, s.c), pass.linked_input = linked_input;
  if (p.dx || p.d_weight) depthwise_backward_pass(pass, a);
  linked_input.finish(p.linked_input, s.c, kDepthwiseChunks);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
