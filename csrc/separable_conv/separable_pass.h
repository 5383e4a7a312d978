// SPDX-License-Identifier: Apache-2.0
// The fused block out = act2(norm2(pointwise(act1(norm1(depthwise(x)))))).
//   inference  strips of depthwise rows go through L2 straight into the product: x is read once, out written once
//   training   (separable_recompute_pass.h without norm1, act1 and bias: y1 null)
//              y1 and y2 (the convolutions' outputs) are kept; each pass measures what it writes and normalises what it
//              reads
//   backward   (1) sums of norm2; (2) dz -> g1 with the weights' gradient; (3) g1 -> dx with the depthwise gradient
#pragma once
#include "separable_conv/separable_recompute_pass.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
FF_INLINE void separable_inference(const SeparableParams& p) {
  constexpr idx kStripBytes = 128 << 10;
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw, out = p.out_channels, lda = block_stride<T>(s.c);
  T *w = nullptr, *scale1 = nullptr, *shift1 = nullptr, *packed = nullptr, *scale2 = nullptr, *shift2 = nullptr;
  Arena a(Scratch::shared);
  w = a.take<T>(taps * stride);
  scale1 = a.take<T>(stride), shift1 = a.take<T>(stride);
  packed = a.take<T>(packed_size<T>(out, s.c));
  scale2 = a.take<T>(out), shift2 = a.take<T>(out);
  fold<T>(p.norm1, p.dw_bias, s.c, scale1, shift1);
  fold<T>(p.norm2, p.pw_bias, out, scale2, shift2);
  pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), p.norm1.weight ? scale1 : nullptr, s.c, taps);
  pack_pointwise<T>(packed, static_cast<const T*>(p.pw_weight), p.norm2.weight ? scale2 : nullptr, s.c, out, p.threads);

  T lo1, hi1, lo2, hi2;
  const bool clamped1 = clamp_bounds(p.act1, &lo1, &hi1), clamped2 = clamp_bounds(p.act2, &lo2, &hi2);
  Bands strips(s, s.ow * lda * static_cast<idx>(sizeof(T)), kStripBytes);
  const idx rounds = ceil_div(strips.count, p.threads);
  if (rounds < 4)  // few strips: cut them so that every thread gets as many; each pixel is computed the same way
    strips = Bands(s, 1, ceil_div(s.oh * s.n, p.threads * max_idx(rounds, 1)));
  const ForwardRow<T> row = row_kernels<T>(s).forward;
  for_tasks(strips.count, p.threads, [&](idx strip) {
    const idx first = strips.first(strip), rows = strips.end(strip) - first, pixels = rows * s.ow;
    const T* image = static_cast<const T*>(p.x) + strips.image(strip) * s.h * s.w * s.c;
    T* buffer = nullptr;
    Arena a(Scratch::task);
    buffer = a.take<T>(pixels * lda);
    for (idx r = 0; r < rows; ++r) row(s, image, first + r, w, shift1, buffer + r * s.ow * lda, lda, lo1, hi1);
    if (!clamped1) affine_act_rows<T>(buffer, lda, buffer, lda, pixels, s.c, nullptr, nullptr, p.act1);
    T* y = static_cast<T*>(p.out) + (strips.image(strip) * s.oh + first) * s.ow * out;
    gemm<T, false>({.a = buffer,
                    .lda = lda,
                    .b = packed,
                    .c = y,
                    .ldc = out,
                    .rows = pixels,
                    .cols = out,
                    .depth = s.c,
                    .bias = shift2,
                    .lo = lo2,
                    .hi = hi2});
    if (!clamped2) affine_act_rows<T>(y, out, y, out, pixels, out, nullptr, nullptr, p.act2);
  });
}

template <class T>
FF_INLINE void separable_training(const SeparableParams& p) {
  if (recomputed(p)) return separable_recompute_training<T>(p);
  const DepthwiseShape& s = p.shape;
  const idx stride1 = round_up_lanes<T>(s.c), taps = s.kh * s.kw, out = p.out_channels,
            stride2 = round_up_lanes<T>(out);
  const idx pixels = s.n * s.oh * s.ow, block = block_rows<T>(s.c + out), blocks = ceil_div(pixels, block);
  const Bands bands = forward_bands<T>(s, p.linked_input.weight);
  const bool measure1 = p.norm1.weight && p.batch_stats,
             measure2 = p.linked_output.on || (p.norm2.weight && p.batch_stats);
  T *w = nullptr, *bias1 = nullptr, *packed = nullptr, *bias2 = nullptr;
  T *mean1 = nullptr, *m2_1 = nullptr, *mean2 = nullptr, *m2_2 = nullptr;
  NormVectors<T> n1, n2;
  LinkedInput<T> linked_input;
  Arena a(Scratch::shared);
  w = a.take<T>(taps * stride1), bias1 = a.take<T>(stride1);
  packed = a.take<T>(packed_size<T>(out, s.c)), bias2 = a.take<T>(stride2);
  if (measure1) mean1 = a.take<T>(bands.count * stride1), m2_1 = a.take<T>(bands.count * stride1);
  if (measure2) mean2 = a.take<T>(blocks * stride2), m2_2 = a.take<T>(blocks * stride2);
  n1.take(a, p.norm1, s.c), n2.take(a, p.norm2, out), linked_input.take(a, p.linked_input, s.c);
  linked_input.fill(p.linked_input, s.c);
  pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), nullptr, s.c, taps);
  copy_padded(bias1, static_cast<const T*>(p.dw_bias), s.c);
  pack_pointwise<T>(packed, static_cast<const T*>(p.pw_weight), nullptr, s.c, out, p.threads);
  copy_padded(bias2, static_cast<const T*>(p.pw_bias), out);
  constant_stats<T>(p.norm1, s.c, p.batch_stats), constant_stats<T>(p.norm2, out, p.batch_stats);

  T* y1 = static_cast<T*>(p.y1);
  depthwise_forward_pass<T>({s, static_cast<const T*>(p.x), w, bias1, y1, mean1, m2_1, p.threads, linked_input});
  if (measure1)
    merge_moments(
        mean1, m2_1, bands.count, stride1, s.c, p.norm1.eps,
        [&](idx b) { return (bands.end(b) - bands.first(b)) * s.ow; }, static_cast<T*>(p.norm1.stats));
  n1.fill(p.norm1, s.c);

  PointwiseForward<T> pass{};
  pass.rows = pixels, pass.in = s.c, pass.out = out, pass.threads = p.threads;
  pass.x = y1, pass.scale1 = n1.scale, pass.shift1 = n1.shift, pass.act1 = p.act1;
  pass.packed = packed, pass.bias = bias2;
  T* z = static_cast<T*>(p.out);
  pass.y = p.y2 ? static_cast<T*>(p.y2) : z;
  pass.mean = mean2, pass.m2 = m2_2, pass.stride = stride2;
  if (!measure2) {  // what follows is known already: apply it while the block is in L2
    n2.fill(p.norm2, out);
    if (p.y2) pass.z = z, pass.scale2 = n2.scale, pass.shift2 = n2.shift, pass.act2 = p.act2;
  }
  pointwise_forward_pass(pass);
  if (!measure2) return;
  merge_moments(
      mean2, m2_2, blocks, stride2, out, p.norm2.eps, [&](idx b) { return min_idx(block, pixels - b * block); },
      static_cast<T*>(p.norm2.stats));
  if (p.linked_output.on) return;
  n2.fill(p.norm2, out);
  affine_act_pass<T>(z, pass.y, {pixels, out, 1}, n2, p.act2, p.threads);
}

template <class T>
FF_INLINE void separable_backward(const SeparableParams& p) {
  const DepthwiseShape& s = p.shape;
  if (recomputed(p) && s.n >= kRecomputeImages) return separable_recompute_backward<T>(p);
  const idx out = p.out_channels, pixels = s.n * s.oh * s.ow, taps = s.kh * s.kw;
  const idx stride1 = round_up_lanes<T>(s.c), stride2 = round_up_lanes<T>(out);
  const idx chunks = backward_chunks<T>(pixels, s.c, out);
  const bool below = p.dx || p.d_dw_weight, norm1 = p.norm1.weight, norm2 = p.norm2.weight;
  LinkedInput<T> linked_input;
  Arena a(Scratch::shared);
  NormVectors<T> n1, n2;
  NormGradVectors<T> grad1, grad2;
  n1.take(a, p.norm1, s.c), n2.take(a, p.norm2, out);
  grad1.take(a, p.norm1, s.c), grad2.take(a, p.norm2, out);
  double* sums2 = a.take<double>(norm2 ? 2 * kSumChunks * stride2 : 0);
  double* sums1 = a.take<double>(norm1 ? 2 * chunks * stride1 : 0);
  T* g = a.take<T>(below ? pixels * s.c : 0);
  T* w = a.take<T>(taps * stride1);
  T* again = a.take<T>(p.y1 ? 0 : pixels * s.c + stride1);
  linked_input.take(a, p.linked_input, s.c, kDepthwiseChunks);
  NormGrad<T> linked{};
  if (p.linked_output.on) linked = linked_gradient<T>(a, p.norm2.stats, p.linked_output, out, pixels, 1);
  linked_input.fill(p.linked_input, s.c);
  const T* y1 = p.y1 ? static_cast<const T*>(p.y1) : again;
  pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), nullptr, s.c, taps);
  if (!p.y1) {  // few images
    T* zero = again + pixels * s.c;
    fill_zero(zero, stride1);
    depthwise_forward_pass<T>(
        {s, static_cast<const T*>(p.x), w, zero, again, nullptr, nullptr, p.threads, linked_input});
  }
  PointwiseBackward<T> pass{};
  pass.rows = pixels, pass.in = s.c, pass.out = out, pass.threads = p.threads;
  pass.g = below ? g : nullptr;
  pass.dw = static_cast<T*>(p.d_pw_weight), pass.db = static_cast<T*>(p.d_pw_bias);
  n1.fill(p.norm1, s.c), n2.fill(p.norm2, out);
  double* sums2_x = sums2 + kSumChunks * stride2;
  if (norm2)
    sums_pass<T>({static_cast<const T*>(p.dout),
                  static_cast<const T*>(p.y2),
                  {pixels, out, 1},
                  {n2.scale, n2.shift, n2.mean, p.act2},
                  kSumChunks,
                  stride2,
                  sums2,
                  sums2_x,
                  p.threads});
  pass.norm2 = p.linked_output.on
                   ? &linked
                   : grad2.fill(p.norm2, out, sums2, sums2_x, kSumChunks, stride2, pixels, p.batch_stats);
  pass.x = y1, pass.norm1 = {n1.scale, n1.shift, n1.mean, p.act1};
  pass.w = static_cast<const T*>(p.pw_weight), pass.dz = static_cast<const T*>(p.dout);
  pass.y = static_cast<const T*>(p.y2), pass.after = {n2.scale, n2.shift, n2.mean, p.act2};
  pass.sum_g = norm1 && below ? sums1 : nullptr;
  pass.sum_gx = norm1 && below ? sums1 + chunks * stride1 : nullptr;
  pointwise_backward_pass(pass, a);
  DepthwiseBackward<T> depthwise{};
  depthwise.s = s, depthwise.threads = p.threads;
  depthwise.dx = static_cast<T*>(p.dx), depthwise.dw = static_cast<T*>(p.d_dw_weight),
  depthwise.db = static_cast<T*>(p.d_dw_bias);
  if (below) {
    depthwise.norm = grad1.fill(p.norm1, s.c, sums1, sums1 + chunks * stride1, chunks, stride1, pixels, p.batch_stats);
    depthwise.x = static_cast<const T*>(p.x), depthwise.w = w, depthwise.dy = g, depthwise.y = y1,
    depthwise.linked_input = linked_input;
    depthwise_backward_pass(depthwise, a);
  }
  linked_input.finish(p.linked_input, s.c, kDepthwiseChunks);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
