// SPDX-License-Identifier: Apache-2.0
//   inference  strips of rows through L2: expansion, depthwise, projection; x is read once, the result written once
//   training   the expansion's statistics from x alone; y1 with its moments; then the projection, or the activation,
//   with
//              the norm before it applied on the way in
#pragma once
#include "bottleneck/covariance.h"
#include "bottleneck/expansion.h"
#include "norm/passes.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
FF_INLINE Expansion<T> expansion_of(const BottleneckParams& p) {
  return {p.shape, p.in_channels, channel_slices<T>(p.shape), p.act, static_cast<const T*>(p.x), nullptr, nullptr};
}

// Parts of an image for tasks of their own, where there are too few images; every pixel is computed the same way.
FF_INLINE idx image_parts(idx tasks, const Bands& bands, int threads) {
  return tasks >= 4 * threads ? 1 : min_idx(bands.per_image, ceil_div(4 * threads, max_idx(tasks, 1)));
}

template <class T>
FF_INLINE void add_rows(T* dst, const T* x, idx rows, idx channels) {
  norm_kernels<T>().add(dst, x, rows * channels);
}

template <class T>
FF_INLINE void bottleneck_inference(const BottleneckParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw;
  Expansion<T> e = expansion_of<T>(p);
  e.slices = {s.c, s.c, 1};
  T *scale1 = nullptr, *shift1 = nullptr, *scale2 = nullptr, *shift2 = nullptr, *scale3 = nullptr, *shift3 = nullptr;
  T *w = nullptr, *projection = nullptr;
  Arena a(Scratch::shared);
  e.take(a), w = a.take<T>(taps * stride);
  scale1 = a.take<T>(stride), shift1 = a.take<T>(stride), scale2 = a.take<T>(stride), shift2 = a.take<T>(stride);
  scale3 = a.take<T>(p.out_channels), shift3 = a.take<T>(p.out_channels),
  projection = a.take<T>(packed_size<T>(p.out_channels, s.c));
  fold<T>(p.norm1, nullptr, s.c, scale1, shift1), fold<T>(p.norm2, nullptr, s.c, scale2, shift2);
  e.shift = shift1, e.pack(static_cast<const T*>(p.expand), scale1, p.threads);
  pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), scale2, s.c, taps);
  if (p.out_channels) {
    fold<T>(p.norm3, nullptr, p.out_channels, scale3, shift3);
    pack_pointwise<T>(projection, static_cast<const T*>(p.project), scale3, s.c, p.out_channels, p.threads);
  }
  T lo, hi;
  const bool clamped = clamp_bounds(p.act, &lo, &hi);
  const Bands bands = expansion_bands<T>(s, e.slices);
  const ForwardRow<T> forward = row_kernels<T>(s).forward;
  const idx parts = image_parts(s.n, bands, p.threads), lda = p.out_channels ? block_stride<T>(s.c) : s.c;
  for_tasks(s.n * parts, p.threads, [&](idx task) {
    const idx image = task / parts, part = task % parts, pixels = bands.rows * s.ow;
    RowWindow<T> window{nullptr, s.w * s.c};
    T* buffer = nullptr;
    Arena a(Scratch::task);
    window.base = a.take<T>(e.rows_in_window(bands) * window.row);
    buffer = a.take<T>(p.out_channels ? pixels * lda : 0);
    for (idx band = bands.per_image * part / parts; band < bands.per_image * (part + 1) / parts; ++band) {
      const idx first = bands.first(band), last = bands.end(band), count = (last - first) * s.ow,
                end = input_end(s, last - 1);
      const idx from = window.advance(input_row(s, first), end), at = (image * s.oh + first) * s.ow;
      e.rows(0, image, from, end, window.at(from), window.at(from));
      T* result = static_cast<T*>(p.result) + at * (p.out_channels ? p.out_channels : s.c);
      T* y = p.out_channels ? buffer : result;
      for (idx oy = first; oy < last; ++oy)
        forward(s, window.origin(), oy, w, shift2, y + (oy - first) * s.ow * lda, lda, lo, hi);
      if (!clamped) affine_act_rows<T>(y, lda, y, lda, count, s.c, nullptr, nullptr, p.act);
      if (!p.out_channels) continue;
      gemm<T, false>({.a = buffer,
                      .lda = lda,
                      .b = projection,
                      .c = result,
                      .ldc = p.out_channels,
                      .rows = count,
                      .cols = p.out_channels,
                      .depth = s.c,
                      .bias = shift3});
      if (p.residual) add_rows(result, static_cast<const T*>(p.x) + at * p.in_channels, count, p.out_channels);
    }
  });
}

// y1 and, with mean not null, its moments by bands [bands][channels padded].
template <class T>
FF_INLINE void expand_depthwise_pass(const Expansion<T>& e, const T* w, const T* zero, T* y1, T* mean, T* m2,
                                     int threads) {
  const DepthwiseShape& s = e.s;
  const Bands bands = expansion_bands<T>(s, e.slices);
  const ForwardRow<T> forward = row_kernels<T>(s).forward;
  const idx stride = round_up_lanes<T>(s.c), parts = image_parts(s.n * e.slices.count, bands, threads);
  for_tasks(s.n * parts * e.slices.count, threads, [&](idx task) {
    const idx slice = task % e.slices.count, part = task / e.slices.count % parts,
              image = task / e.slices.count / parts;
    const DepthwiseShape one = e.part(slice);
    const idx c = e.slices.begin(slice);
    RowWindow<T> window{nullptr, s.w * one.c};
    Arena a(Scratch::task);
    window.base = a.take<T>(e.rows_in_window(bands) * window.row);
    for (idx b = bands.per_image * part / parts; b < bands.per_image * (part + 1) / parts; ++b) {
      const idx first = bands.first(b), last = bands.end(b), end = input_end(s, last - 1),
                band = image * bands.per_image + b;
      const idx from = window.advance(input_row(s, first), end);
      e.rows(slice, image, from, end, window.at(from), window.at(from));
      T* y = y1 + (image * s.oh + first) * s.ow * s.c + c;
      for (idx oy = first; oy < last; ++oy)
        forward(one, window.origin(), oy, w + c * s.kh * s.kw, zero, y + (oy - first) * s.ow * s.c, s.c, T(-kInfinity),
                T(kInfinity));
      if (mean) moments_rows<T>(y, s.c, (last - first) * s.ow, one.c, mean + band * stride + c, m2 + band * stride + c);
    }
  });
}

template <class T>
FF_INLINE void bottleneck_training(const BottleneckParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw, pixels = s.n * s.oh * s.ow,
            out_stride = round_up_lanes<T>(p.out_channels);
  const idx block = block_rows<T>(s.c + p.out_channels), blocks = ceil_div(pixels, block);
  const Wide v = p.out_channels ? Wide{pixels, p.out_channels, 1} : widened<T>(pixels, s.c);
  Expansion<T> e = expansion_of<T>(p);
  const Bands bands = expansion_bands<T>(s, e.slices);
  InputMoments<T> input;
  NormVectors<T> n1, n2, n3;
  T *w = nullptr, *zero = nullptr, *packed = nullptr;
  T *mean2 = nullptr, *m2_2 = nullptr, *mean3 = nullptr, *m2_3 = nullptr;
  Arena a(Scratch::shared);
  e.take(a), n1.take(a, p.norm1, s.c), n2.take(a, p.norm2, s.c), n3.take(a, p.norm3, p.out_channels);
  w = a.take<T>(taps * stride), zero = a.take<T>(max_idx(stride, out_stride));
  packed = a.take<T>(packed_size<T>(p.out_channels, s.c));
  if (p.batch_stats) {
    input.take(a, s.n * s.h * s.w, p.in_channels);
    mean2 = a.take<T>(bands.count * stride), m2_2 = a.take<T>(bands.count * stride);
    mean3 = a.take<T>(p.out_channels ? blocks * out_stride : 0),
    m2_3 = a.take<T>(p.out_channels ? blocks * out_stride : 0);
  }
  constant_stats<T>(p.norm1, s.c, p.batch_stats), constant_stats<T>(p.norm2, s.c, p.batch_stats);
  constant_stats<T>(p.norm3, p.out_channels, p.batch_stats);
  pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), nullptr, s.c, taps);
  fill_zero(zero, max_idx(stride, out_stride));
  if (p.out_channels)
    pack_pointwise<T>(packed, static_cast<const T*>(p.project), nullptr, s.c, p.out_channels, p.threads);

  const T* expand = static_cast<const T*>(p.expand);
  if (p.batch_stats) {
    input.run(e.x, p.threads);
    linear_stats<T>(input, expand, s.c, p.norm1.eps, static_cast<T*>(p.norm1.stats), static_cast<T*>(p.covariance),
                    p.threads);
  }
  n1.fill(p.norm1, s.c);
  e.shift = n1.shift, e.pack(expand, n1.scale, p.threads);
  T* y1 = static_cast<T*>(p.y1);
  expand_depthwise_pass<T>(e, w, zero, y1, mean2, m2_2, p.threads);
  if (p.batch_stats)
    merge_moments(
        mean2, m2_2, bands.count, stride, s.c, p.norm2.eps,
        [&](idx b) { return (bands.end(b) - bands.first(b)) * s.ow; }, static_cast<T*>(p.norm2.stats));
  T *result = static_cast<T*>(p.result), *y2 = static_cast<T*>(p.y2);
  if (!p.out_channels) {
    n2.fill(p.norm2, s.c, v.times);
    return affine_act_pass<T>(result, y1, v, n2, p.act, p.threads);
  }
  n2.fill(p.norm2, s.c);
  PointwiseForward<T> pass{};
  pass.rows = pixels, pass.in = s.c, pass.out = p.out_channels, pass.threads = p.threads;
  pass.x = y1, pass.scale1 = n2.scale, pass.shift1 = n2.shift, pass.act1 = p.act;
  pass.packed = packed, pass.bias = zero, pass.y = y2, pass.mean = mean3, pass.m2 = m2_3, pass.stride = out_stride;
  pointwise_forward_pass(pass);
  if (p.batch_stats)
    merge_moments(
        mean3, m2_3, blocks, out_stride, p.out_channels, p.norm3.eps,
        [&](idx b) { return min_idx(block, pixels - b * block); }, static_cast<T*>(p.norm3.stats));
  n3.fill(p.norm3, p.out_channels);
  if (!p.residual) return affine_act_pass<T>(result, y2, v, n3, Act::none, p.threads);
  const idx lines = stream_rows<T>(2 * p.out_channels);
  for_tasks(ceil_div(pixels, lines), p.threads, [&](idx b) {
    const idx first = b * lines * p.out_channels, rows = min_idx(lines, pixels - b * lines);
    affine_act_rows<T>(result + first, p.out_channels, y2 + first, p.out_channels, rows, p.out_channels, n3.scale,
                       n3.shift, Act::none);
    add_rows(result + first, e.x + first, rows, p.out_channels);
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
